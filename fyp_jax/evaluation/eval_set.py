"""The evaluation set of the synthetic world: scenes that no training data has, and scores of their clips."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from fyp_jax.evaluation.statistics import ConfidenceInterval, bootstrap_ci, consecutive_cosine
from fyp_jax.evaluation.synthetic_metrics import pose_scores, temporal_consistency, text_scores
from fyp_jax.pose.skeleton import draw_skeleton
from fyp_jax.synthetic.motions import HELD_OUT_MOTION
from fyp_jax.synthetic.scenes import HELD_OUT_PAIRS, SIDE, TRAIN_PAIRS, Scene, caption, render_clip
from fyp_jax.synthetic.styles import STYLES

FIRST_SEED = 9 * 10**6
"""The first seed of evaluation scenes; training scenes have smaller ones."""


class EvalCase(NamedTuple):
    """A scene, and the pose sequence that its clip should follow."""

    scene: Scene
    keypoints: np.ndarray
    """float [f 17 3], in pixels of 64 x 64."""
    pose_images: UInt8[np.ndarray, "f 64 64 3"]
    """Skeletons, RGB on black."""

    @property
    def caption(self) -> str:
        return caption(self.scene)


def make_eval_cases(count: int, frames: int, held_out_pairs: bool) -> list[EvalCase]:
    """`count` scenes with the held-out motion, which cycle through the pairs of character and background and
    through the styles."""
    pairs = HELD_OUT_PAIRS if held_out_pairs else TRAIN_PAIRS
    order = np.random.default_rng(0).permutation(len(pairs))
    cases = []
    for i in range(count):
        style = list(STYLES)[i % len(STYLES)]
        seed = FIRST_SEED + i + (10**5 if held_out_pairs else 0)
        character, background = pairs[order[i % len(pairs)]]
        scene = Scene(character, background, style, HELD_OUT_MOTION, seed)
        keypoints = render_clip(scene, frames).keypoints
        pose_images = np.stack([draw_skeleton(joints[None], SIDE, SIDE) for joints in keypoints])
        cases.append(EvalCase(scene, keypoints, pose_images))
    return cases


class Scores(NamedTuple):
    """Scores of one model or ablation; each field is a mean over clips with its interval."""

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
    cases: Sequence[EvalCase],
    encode: Callable[[np.ndarray], np.ndarray],
) -> Scores:
    """Scores of one clip for each case; `encode` gives VAE latents of uint8 frames.

    The shuffled scores are the chance level: they compare each clip with the pose of the case half the list
    further on.
    """
    columns: dict[str, list[float]] = {name: [] for name in Scores._fields}
    for i, (video, case) in enumerate(zip(videos, cases, strict=True)):
        scene, keypoints = case.scene, case.keypoints
        other = cases[(i + len(cases) // 2) % len(cases)].keypoints
        own, shuffled = (pose_scores(video, joints, scene) for joints in (keypoints, other))
        row = {
            "pose_accuracy": own.accuracy,
            "pose_accuracy_shuffled": shuffled.accuracy,
            "iou": own.iou,
            "iou_shuffled": shuffled.iou,
            **{name: float(value) for name, value in text_scores(video, keypoints, scene)._asdict().items()},
            **temporal_consistency(video, keypoints, scene)._asdict(),
            "latent_cosine": consecutive_cosine(encode(video)),
        }
        for name, value in row.items():
            columns[name].append(value)
    return Scores(**{name: bootstrap_ci(values) for name, values in columns.items()})
