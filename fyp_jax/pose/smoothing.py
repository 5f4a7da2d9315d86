"""What is done to the joints of one person over time: short gaps are filled, and jitter is filtered.

Keypoints are [f 17 3] of consecutive frames: x and y in pixels, and a confidence. A joint below
`MIN_CONFIDENCE` is missing in that frame, since `draw_skeleton` leaves it out.
"""

from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float

from fyp_jax.pose.similarity import Keypoints, box_sides
from fyp_jax.pose.skeleton import MIN_CONFIDENCE

MAX_GAP = 5
"""Frames; a joint that is missing for longer stays missing."""

MIN_CUTOFF = 1.0  # Hz, for a joint at rest
BETA = 10.0  # Hz for a speed of one person's size a second
SPEED_CUTOFF = 1.0  # Hz


def fill_gaps(keypoints: Keypoints, max_gap: int = MAX_GAP) -> Keypoints:
    """Interpolate each joint over gaps of up to `max_gap` frames, linearly between the frames beside them.

    A filled joint has the lower one of the two confidences. Nothing is added before the first frame in which
    a joint is there, and after the last.
    """
    filled = keypoints.copy()
    for joint in range(keypoints.shape[1]):
        there = np.flatnonzero(keypoints[:, joint, 2] >= MIN_CONFIDENCE)
        for before, after in pairwise(there):
            if not 1 < after - before <= max_gap + 1:
                continue
            a, b = keypoints[before, joint], keypoints[after, joint]
            weights = (np.arange(before + 1, after) - before)[:, None] / (after - before)
            filled[before + 1 : after, joint] = (1 - weights) * a + weights * b
            filled[before + 1 : after, joint, 2] = min(a[2], b[2])
    return filled


def one_euro(keypoints: Keypoints, fps: float) -> Keypoints:
    """Filter x and y with the 1€ filter (Casiez, Roussel and Vogel 2012), forwards and backwards in time.

    The filter follows a fast joint closely and holds one at rest, where jitter shows. The mean of both
    directions has no lag. Speed is measured in the person's size (the root of the median area of its boxes),
    so that a film of another resolution is filtered alike. The filter starts anew after each gap of a joint.
    """
    there = keypoints[..., 2] >= MIN_CONFIDENCE
    seen = there.any(axis=1)
    if not seen.any():
        return keypoints
    width, height = box_sides(np.where(there[..., None], keypoints, 0)[seen])
    size = max(1.0, float(np.sqrt(np.median(width * height))))
    places = keypoints[..., :2] / size
    forwards = _one_euro_pass(places, there, fps)
    backwards = _one_euro_pass(places[::-1], there[::-1], fps)[::-1]
    smooth = keypoints.copy()
    smooth[..., :2] = np.where(there[..., None], size * (forwards + backwards) / 2, keypoints[..., :2])
    return smooth


def _one_euro_pass(
    places: Float[np.ndarray, "f 17 2"], there: Bool[np.ndarray, "f 17"], fps: float
) -> Float[np.ndarray, "f 17 2"]:
    """The 1€ filter in one direction (algorithm 1 of the paper)."""
    filtered = places.copy()
    speed = np.zeros_like(places[0])
    for frame in range(1, len(places)):
        follows = (there[frame] & there[frame - 1])[:, None]
        change = (places[frame] - filtered[frame - 1]) * fps
        weight = _weight(np.full_like(speed, SPEED_CUTOFF), fps)
        speed = np.where(follows, weight * change + (1 - weight) * speed, 0.0)
        weight = _weight(MIN_CUTOFF + BETA * np.abs(speed), fps)
        mixed = weight * places[frame] + (1 - weight) * filtered[frame - 1]
        filtered[frame] = np.where(follows, mixed, places[frame])
    return filtered


def _weight(cutoff: np.ndarray, fps: float) -> np.ndarray:
    """The weight of a new value in a low-pass filter with this cutoff in Hz."""
    return 1 / (1 + fps / (2 * np.pi * cutoff))
