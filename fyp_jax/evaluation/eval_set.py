"""The mini world's exam: what is asked (scenes that training has not seen), and how answers are scored."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from fyp_jax.evaluation.statistics import ConfidenceInterval, bootstrap_ci, consecutive_cosine
from fyp_jax.evaluation.synthetic_metrics import pose_scores, temporal_consistency, text_scores
from fyp_jax.pose.skeleton import draw_skeleton
from fyp_jax.synthetic.motions import HELD_OUT_MOTION
from fyp_jax.synthetic.scenes import (
    HELD_OUT_PAIRS,
    SIDE,
    TRAINED_PAIRS,
    Scene,
    render_clip,
)
from fyp_jax.synthetic.styles import STYLES

FIRST_SEED = 9 * 10**6
"""Of the exam's scenes; training's are far below."""


class EvalCase(NamedTuple):
    """What a clip is asked to be."""

    scene: Scene
    keypoints: np.ndarray
    """float [f 17 3], pixels of 64 x 64."""
    skeleton: Float32[np.ndarray, "f 64 64 3"]


def make_eval_cases(count: int, frames: int, held_out_pairs: bool) -> list[EvalCase]:
    """`count` scenes with the held-out motion; pairs and styles in turn, so that all come up."""
    pairs = HELD_OUT_PAIRS if held_out_pairs else TRAINED_PAIRS
    order = np.random.default_rng(0).permutation(len(pairs))
    asked = []
    for i in range(count):
        style = list(STYLES)[i % len(STYLES)]
        seed = FIRST_SEED + i + (10**5 if held_out_pairs else 0)
        character, background = pairs[order[i % len(pairs)]]
        scene = Scene(character, background, style, HELD_OUT_MOTION, seed)
        points = render_clip(scene, frames).keypoints
        drawn = np.stack([draw_skeleton(joints[None], SIDE, SIDE) for joints in points])
        asked.append(EvalCase(scene, points, drawn.astype(np.float32) / 255))
    return asked


class Scores(NamedTuple):
    """Of one way of sampling; each field is an estimate over clips."""

    pose_accuracy: ConfidenceInterval
    pose_accuracy_shuffled: ConfidenceInterval
    iou: ConfidenceInterval
    iou_shuffled: ConfidenceInterval
    character: ConfidenceInterval
    background: ConfidenceInterval
    style: ConfidenceInterval
    flicker: ConfidenceInterval
    drift: ConfidenceInterval
    latent_cosine: ConfidenceInterval


def score(
    videos: Sequence[UInt8[np.ndarray, "f 64 64 3"]],
    asked: Sequence[EvalCase],
    encode: Callable[[np.ndarray], np.ndarray],
) -> Scores:
    """Scores of clips against what they were asked to be; `encode` gives VAE latents of uint8 frames.

    Chance is the same clip scored against the pose of another question, half of the list further on.
    """
    columns: dict[str, list[float]] = {name: [] for name in Scores._fields}
    for i, (video, question) in enumerate(zip(videos, asked, strict=True)):
        scene, points = question.scene, question.keypoints
        other = asked[(i + len(asked) // 2) % len(asked)].keypoints
        right, chance = (pose_scores(video, joints, scene) for joints in (points, other))
        text = text_scores(video, points, scene)
        steady = temporal_consistency(video, points, scene)
        row = {
            "pose_accuracy": right.accuracy,
            "pose_accuracy_shuffled": chance.accuracy,
            "iou": right.iou,
            "iou_shuffled": chance.iou,
            **{name: float(value) for name, value in text._asdict().items()},
            **steady._asdict(),
            "latent_cosine": consecutive_cosine(encode(video)),
        }
        for name, value in row.items():
            columns[name].append(value)
    return Scores(**{name: bootstrap_ci(values) for name, values in columns.items()})
