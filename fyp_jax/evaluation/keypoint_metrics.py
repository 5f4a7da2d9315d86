"""Keypoints against keypoints: PCK and OKS. Keypoints are [f 17 3], x and y in pixels, and a confidence."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

Keypoints = Float[np.ndarray, "f 17 3"]
OKS_SIGMAS = np.array([26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]) / 1000
"""COCO's, one a joint."""


def pck(found: Keypoints, given: Keypoints, share: float = 0.1) -> float:
    """Share of keypoints within `share` of the given person's larger side (PCK, Yang and Ramanan 2013).

    Joints of confidence 0 on the given side do not count.
    """
    size = np.maximum(*_sides(given))
    apart = np.linalg.norm(found[..., :2] - given[..., :2], axis=-1)
    counts = given[..., 2] > 0
    return float((apart <= share * size[:, None])[counts].mean())


def oks(found: Keypoints, given: Keypoints) -> float:
    """COCO's object keypoint similarity, mean over frames; the area is that of the given joints' box."""
    wide, high = _sides(given)
    apart = np.square(found[..., :2] - given[..., :2]).sum(axis=-1)
    scale = 2 * np.maximum(wide * high, 1e-6)[:, None] * np.square(2 * OKS_SIGMAS)
    counts = given[..., 2] > 0
    return float(((np.exp(-apart / scale) * counts).sum(axis=1) / np.maximum(counts.sum(axis=1), 1)).mean())


def match_people(
    found: Sequence[Float[np.ndarray, "_ 17 3"]], given: Sequence[Float[np.ndarray, "_ 17 3"]]
) -> tuple[Float[np.ndarray, "n 17 3"], Float[np.ndarray, "n 17 3"]]:
    """Of two lists of frames with several persons each: every given person, and who is most like it by OKS.

    Where a frame has nobody, its given persons are matched with joints infinitely far away; a person may be
    taken twice. Given persons without any joint are left out.
    """
    nobody = np.full((17, 3), np.inf)
    pairs = [
        (max(persons, key=lambda one: oks(one[None], wanted[None]), default=nobody), wanted)
        for persons, people in zip(found, given, strict=True)
        for wanted in people
        if (wanted[:, 2] > 0).any()
    ]
    ours, theirs = np.array(pairs).reshape(-1, 2, 17, 3).swapaxes(0, 1)
    return ours, theirs


def _sides(keypoints: Keypoints) -> tuple[Float[np.ndarray, " f"], Float[np.ndarray, " f"]]:
    """Width and height of the box around the joints that are there."""
    places = np.where(keypoints[..., 2:] > 0, keypoints[..., :2], np.nan)
    wide, high = (np.nanmax(places, axis=1) - np.nanmin(places, axis=1)).T
    return wide, high
