"""Windows over the frames of a long clip: where they begin, how their predictions are blended, their noise.

A window has as many frames as the model was trained on. At each step of the solver the windows cover the
clip, one behind the other, and begin elsewhere than at the step before, so that no two frames are on two
sides of a seam for long. Frames that several windows of a step have are blended with triangular weights.
"""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float32, Int, Int32


class Windows(NamedTuple):
    """The windows of one step, in groups that are computed at the same time."""

    starts: Int32[np.ndarray, "groups g"]
    """First frame of each window; the first window of the first group begins at frame 0."""
    weights: Float32[np.ndarray, "groups g w"]
    """Weights of the frames of each window; those of a frame of the clip sum to 1."""


def window_starts(num_frames: int, window: int, overlap: int = 0, step_index: int = 0) -> list[int]:
    """First frames of the windows of a step; the first is 0, the last window ends with the clip.

    Windows are `window - overlap` frames apart. From step to step they are shifted by 0, 1/2, 1/4, 3/4, 1/8
    ... of that, so that each place has a seam about as often as any other.
    """
    if num_frames <= window:
        return [0]
    stride = window - overlap
    shift = int(van_der_corput(step_index) * stride)
    last = num_frames - window
    return [0, *range(shift or stride, last, stride), last]


def van_der_corput(index: int) -> float:
    """The binary digits of `index` behind the point, in reverse: each value is far from those before it."""
    digits = f"{index:b}"
    return int(digits[::-1], 2) / 2 ** len(digits)


def make_windows(num_frames: int, window: int, overlap: int, step_index: int, group: int) -> Windows:
    """The windows of a step in groups of `group`; the last window is repeated with weight 0 to fill a
    group."""
    starts = window_starts(num_frames, window, overlap, step_index)
    triangle = np.minimum(np.arange(window) + 1, window - np.arange(window)).astype(np.float32)
    total = np.zeros(num_frames, np.float32)
    for start in starts:
        total[start : start + window] += triangle
    weights = [triangle / total[start : start + window] for start in starts]
    missing = -len(starts) % group
    starts, weights = starts + starts[-1:] * missing, weights + [np.zeros_like(triangle)] * missing
    return Windows(
        np.asarray(starts, np.int32).reshape(-1, group), np.stack(weights).reshape(-1, group, window)
    )


def shuffled_frames(key: jax.Array, num_frames: int, window: int) -> Int[np.ndarray, "f"]:
    """Which of the noise frames of the first window each frame has, each later block of `window` frames in an
    order of its own (FreeNoise, Qiu et al. 2024, section 4.1)."""
    order = [np.arange(window)]
    for block in range(1, -(-num_frames // window)):
        order.append(np.asarray(jax.random.permutation(jax.random.fold_in(key, block), window)))
    return np.concatenate(order)[:num_frames]
