"""The size of a clip that a call of the pipeline brings along in memory."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from fyp_jax.errors import UserError
from fyp_jax.models.pose_encoder import DOWNSCALE


def clip_sizes(frames: Sequence[Any], latents: Any, channels: int) -> dict[str, int]:
    """Frames, height and width (in pixels) of what is given in memory.

    Raises UserError where they differ, where frames are not uint8 RGB, or latents have not so many channels.
    """
    shapes = []
    for clip in frames:
        if clip is None or isinstance(clip, (str, os.PathLike)):
            continue
        if clip.ndim != 4 or clip.shape[-1] != 3 or clip.dtype != np.uint8:
            raise UserError(
                f"frames in memory are uint8 RGB in 0..255 of the shape [f h w 3], not {_spec(clip)}"
            )
        shapes.append(clip.shape[:3])
    if latents is not None:
        if latents.ndim != 4 or latents.shape[-1] != channels:
            raise UserError(f"latents of this model have the shape [f h w {channels}], not {_spec(latents)}")
        count, height, width, _ = latents.shape
        shapes.append((count, DOWNSCALE * height, DOWNSCALE * width))
    if any(shape != shapes[0] for shape in shapes):
        listed = " against ".join("{} frames of {}x{}".format(*shape) for shape in shapes)
        raise UserError(f"pose, video and latents differ in size: {listed} pixels")
    return dict(zip(("num_frames", "height", "width"), shapes[0], strict=True)) if shapes else {}


def _spec(array: Any) -> str:
    return f"{array.dtype} of the shape {list(array.shape)}"
