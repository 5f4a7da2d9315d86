"""The mini world's exam: what is asked (scenes that training has not seen), and how answers are scored."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from fyp_jax import metrics
from fyp_jax.data.mini_world.clips import (
    HELD_OUT_PAIRS,
    SIDE,
    TRAINED_PAIRS,
    Scene,
    draw_clip,
)
from fyp_jax.data.mini_world.motions import HELD_OUT_MOTION
from fyp_jax.data.mini_world.styles import STYLES
from fyp_jax.media.pose import draw_skeleton
from fyp_jax.metrics import Estimate

FIRST_SEED = 9 * 10**6
"""Of the exam's scenes; training's are far below."""


class Question(NamedTuple):
    """What a clip is asked to be."""

    scene: Scene
    keypoints: np.ndarray
    """float [f 17 3], pixels of 64 x 64."""
    skeleton: Float32[np.ndarray, "f 64 64 3"]


def questions(count: int, frames: int, held_out_pairs: bool) -> list[Question]:
    """`count` scenes with the held-out motion; pairs and styles in turn, so that all come up."""
    pairs = HELD_OUT_PAIRS if held_out_pairs else TRAINED_PAIRS
    order = np.random.default_rng(0).permutation(len(pairs))
    asked = []
    for i in range(count):
        style = list(STYLES)[i % len(STYLES)]
        seed = FIRST_SEED + i + (10**5 if held_out_pairs else 0)
        character, background = pairs[order[i % len(pairs)]]
        scene = Scene(character, background, style, HELD_OUT_MOTION, seed)
        points = draw_clip(scene, frames).keypoints
        drawn = np.stack([draw_skeleton(joints[None], SIDE, SIDE) for joints in points])
        asked.append(Question(scene, points, drawn.astype(np.float32) / 255))
    return asked


class Scores(NamedTuple):
    """Of one way of sampling; each field is an estimate over clips."""

    pose_accuracy: Estimate
    pose_accuracy_shuffled: Estimate
    iou: Estimate
    iou_shuffled: Estimate
    character: Estimate
    background: Estimate
    style: Estimate
    flicker: Estimate
    drift: Estimate
    latent_cosine: Estimate


def score(
    videos: Sequence[UInt8[np.ndarray, "f 64 64 3"]],
    asked: Sequence[Question],
    encode: Callable[[np.ndarray], np.ndarray],
) -> Scores:
    """Scores of clips against what they were asked to be; `encode` gives VAE latents of uint8 frames.

    Chance is the same clip scored against the pose of another question, half of the list further on.
    """
    columns: dict[str, list[float]] = {name: [] for name in Scores._fields}
    for i, (video, question) in enumerate(zip(videos, asked, strict=True)):
        scene, points = question.scene, question.keypoints
        other = asked[(i + len(asked) // 2) % len(asked)].keypoints
        right, chance = (metrics.pose_scores(video, joints, scene) for joints in (points, other))
        text = metrics.text_scores(video, points, scene)
        steady = metrics.steadiness(video, points, scene)
        row = {
            "pose_accuracy": right.accuracy,
            "pose_accuracy_shuffled": chance.accuracy,
            "iou": right.iou,
            "iou_shuffled": chance.iou,
            **{name: float(value) for name, value in text._asdict().items()},
            **steady._asdict(),
            "latent_cosine": metrics.consecutive_cosine(encode(video)),
        }
        for name, value in row.items():
            columns[name].append(value)
    return Scores(**{name: metrics.estimate(values) for name, values in columns.items()})
