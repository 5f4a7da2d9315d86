"""How alike two persons are: boxes around joints, their overlap (IoU), and COCO's object keypoint similarity.

Keypoints are [f 17 3]: x and y in pixels, and a confidence. A joint of confidence 0 is not there.
"""

import numpy as np
from jaxtyping import Float

Keypoints = Float[np.ndarray, "f 17 3"]
OKS_SIGMAS = np.array([26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]) / 1000
"""COCO's constants of the object keypoint similarity, one for each joint."""


def oks(pred: Keypoints, target: Keypoints) -> float:
    """COCO's object keypoint similarity, mean over frames; the area is that of the target's box."""
    width, height = box_sides(target)
    distance2 = np.square(pred[..., :2] - target[..., :2]).sum(axis=-1)
    scale = 2 * np.maximum(width * height, 1e-6)[:, None] * np.square(2 * OKS_SIGMAS)
    counts = target[..., 2] > 0
    similarity = (np.exp(-distance2 / scale) * counts).sum(axis=1)
    return float((similarity / np.maximum(counts.sum(axis=1), 1)).mean())


def iou(a: Float[np.ndarray, "4"], b: Float[np.ndarray, "4"]) -> float:
    """Intersection over union of two boxes of left, top, right, bottom; 0 where both are empty."""
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    overlap = np.prod(np.maximum(sides, 0))
    union = np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - overlap
    return float(overlap / union) if union > 0 else 0.0


def boxes(keypoints: Keypoints) -> Float[np.ndarray, "f 4"]:
    """Boxes around the joints that are there, as left, top, right, bottom. Each frame needs such a joint."""
    places = np.where(keypoints[..., 2:] > 0, keypoints[..., :2], np.nan)
    return np.concatenate([np.nanmin(places, axis=1), np.nanmax(places, axis=1)], axis=-1)


def box_sides(keypoints: Keypoints) -> tuple[Float[np.ndarray, " f"], Float[np.ndarray, " f"]]:
    """Width and height of the boxes around the joints that are there."""
    left, top, right, bottom = boxes(keypoints).T
    return right - left, bottom - top
