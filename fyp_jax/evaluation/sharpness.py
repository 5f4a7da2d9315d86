"""How sharp the edges of a picture are: beside a drawing of the same scene, and without one."""

import numpy as np
from jaxtyping import Float, Int

from fyp_jax.media.images import Frames

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
EDGE_THRESHOLD = 60
"""Least response of a Sobel filter, of 1020, that counts as an edge."""


def edge_sharpness(video: Frames, drawing: Frames) -> float:
    """Mean length of a clip's luma gradients, as a fraction of the drawing's: 1 for edges as sharp as drawn.

    Raises ValueError for a drawing without edges.
    """
    drawn = _gradients(drawing).mean()
    if not drawn:
        raise ValueError("the drawing has one colour only, so it has no edges")
    return float(_gradients(video).mean() / drawn)


def mean_edge_width(video: Frames) -> float:
    """Mean width in pixels of the vertical edges of a clip (Marziliano et al. 2002, section 2); nan without
    any.

    An edge is a local maximum along a row of the Sobel filter's response. It reaches as far as luma rises, or
    falls, without a break on both sides of it. The filter sees three rows: where the row in the middle
    neither rises nor falls, it has no edge. The measure needs no reference.
    """
    widths = np.concatenate([_edge_widths(frame) for frame in _luma(video)])
    return float(widths.mean()) if widths.size else float("nan")


def _luma(video: Frames) -> Int[np.ndarray, "f h w"]:
    return np.rint(video @ np.array(LUMA)).astype(int)


def _gradients(video: Frames) -> Float[np.ndarray, "f h-1 w-1"]:
    luma = _luma(video)
    return np.hypot(np.diff(luma, axis=1)[:, :, :-1], np.diff(luma, axis=2)[:, :-1])


def _edge_widths(luma: Int[np.ndarray, "h w"]) -> Int[np.ndarray, " n"]:
    padded = np.pad(luma, 1, mode="edge")
    smoothed = padded[:-2] + 2 * padded[1:-1] + padded[2:]
    sobel = smoothed[:, 2:] - smoothed[:, :-2]
    strength = np.abs(sobel)
    beside = np.pad(strength, ((0, 0), (1, 1)))
    is_edge = (strength > EDGE_THRESHOLD) & (strength >= beside[:, :-2]) & (strength > beside[:, 2:])
    rising, falling = _monotone_widths(luma), _monotone_widths(-luma)
    widths = np.where(sobel > 0, rising, falling)[is_edge]
    return widths[widths > 0]


def _monotone_widths(luma: Int[np.ndarray, "h w"]) -> Int[np.ndarray, "h w"]:
    """Length of the run around each pixel within which its row rises from each pixel to the next."""
    positions = np.arange(luma.shape[1])
    breaks = np.diff(luma, axis=1) <= 0  # between a pixel and the next
    starts = np.pad(np.where(breaks, positions[1:], 0), ((0, 0), (1, 0)))
    ends = np.pad(
        np.where(breaks, positions[:-1], positions[-1]), ((0, 0), (0, 1)), constant_values=positions[-1]
    )
    start = np.maximum.accumulate(starts, axis=1)
    end = np.minimum.accumulate(ends[:, ::-1], axis=1)[:, ::-1]
    return end - start
