"""PCK and OKS of predicted keypoints. Keypoints are [f 17 3]: x and y in pixels, and a confidence."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

Keypoints = Float[np.ndarray, "f 17 3"]
OKS_SIGMAS = np.array([26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]) / 1000
"""COCO's constants of object keypoint similarity (OKS), one for each joint."""


def pck(pred: Keypoints, target: Keypoints, threshold: float = 0.1) -> float:
    """Fraction of keypoints within `threshold` times the target person's larger side (Yang and Ramanan 2013).

    Keypoints whose target has confidence 0 do not count.
    """
    size = np.maximum(*_box_sides(target))
    distance = np.linalg.norm(pred[..., :2] - target[..., :2], axis=-1)
    counts = target[..., 2] > 0
    return float((distance <= threshold * size[:, None])[counts].mean())


def oks(pred: Keypoints, target: Keypoints) -> float:
    """COCO's object keypoint similarity, as a mean over frames. The area is that of the target's box."""
    width, height = _box_sides(target)
    distance2 = np.square(pred[..., :2] - target[..., :2]).sum(axis=-1)
    scale = 2 * np.maximum(width * height, 1e-6)[:, None] * np.square(2 * OKS_SIGMAS)
    counts = target[..., 2] > 0
    similarity = (np.exp(-distance2 / scale) * counts).sum(axis=1)
    return float((similarity / np.maximum(counts.sum(axis=1), 1)).mean())


def match_people(
    pred: Sequence[Float[np.ndarray, "_ 17 3"]], target: Sequence[Float[np.ndarray, "_ 17 3"]]
) -> tuple[Float[np.ndarray, "n 17 3"], Float[np.ndarray, "n 17 3"]]:
    """Match each target person of each frame with the predicted person of the highest OKS.

    Returns the matched predictions and their targets. A target in a frame without predictions is matched with
    joints at infinity. A prediction may be matched twice. Targets without any joint are left out.
    """
    nobody = np.full((17, 3), np.inf)
    pairs = [
        (max(candidates, key=lambda one: oks(one[None], person[None]), default=nobody), person)
        for candidates, people in zip(pred, target, strict=True)
        for person in people
        if (person[:, 2] > 0).any()
    ]
    matched, targets = np.array(pairs).reshape(-1, 2, 17, 3).swapaxes(0, 1)
    return matched, targets


def _box_sides(keypoints: Keypoints) -> tuple[Float[np.ndarray, " f"], Float[np.ndarray, " f"]]:
    """Width and height of the box around the joints of a confidence above 0."""
    points = np.where(keypoints[..., 2:] > 0, keypoints[..., :2], np.nan)
    width, height = (np.nanmax(points, axis=1) - np.nanmin(points, axis=1)).T
    return width, height
