"""PCK and OKS of predicted keypoints. Keypoints are [f 17 3]: x and y in pixels, and a confidence."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from fyp_jax.pose.similarity import Keypoints, box_sides, oks


def pck(pred: Keypoints, target: Keypoints, threshold: float = 0.1) -> float:
    """Fraction of keypoints within `threshold` times the target person's larger side (Yang and Ramanan 2013).

    Keypoints whose target has confidence 0 do not count.
    """
    size = np.maximum(*box_sides(target))
    distance = np.linalg.norm(pred[..., :2] - target[..., :2], axis=-1)
    counts = target[..., 2] > 0
    return float((distance <= threshold * size[:, None])[counts].mean())


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
