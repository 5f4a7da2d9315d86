"""Frames in memory: resizing, cropping, and image grids. RGB in 0..255."""

from collections.abc import Sequence

import numpy as np
import PIL.Image
from jaxtyping import UInt8

Clip = UInt8[np.ndarray, "f h w 3"]
Image = UInt8[np.ndarray, "h w 3"]

SHEET_COLUMNS = 8
SHEET_GAP = 4  # pixels
SHEET_GREY = 128


def resize_center_crop(frames: Clip, height: int, width: int) -> UInt8[np.ndarray, "f {height} {width} 3"]:
    """Scale to cover height x width with the aspect kept, and crop to the centre."""
    h, w = frames.shape[1:3]
    if (h, w) == (height, width):
        return frames
    box = centre_box(h, w, height, width)  # resize() reads just that, to a fraction of a pixel
    # BICUBIC: Pillow widens it when reducing, so nothing aliases, and thin lines ring less than by LANCZOS
    return np.stack(
        [
            np.asarray(PIL.Image.fromarray(frame).resize((width, height), PIL.Image.Resampling.BICUBIC, box))
            for frame in frames
        ]
    )


def centre_box(h: int, w: int, height: int, width: int) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of what `fit` shows of a frame of h x w, in its pixels."""
    crop_h, crop_w = min(h, w * height / width), min(w, h * width / height)
    top, left = (h - crop_h) / 2, (w - crop_w) / 2
    return left, top, left + crop_w, top + crop_h


def image_grid(rows: Sequence[UInt8[np.ndarray, "_ _ _ 3"]]) -> Image:
    """Clips of one shape above each other, time from left to right, grey gaps.

    After 8 columns a new block begins below: 24 frames of poses and video are 3 blocks of 2 rows.
    """
    shapes = {clip.shape for clip in rows}
    if len(shapes) != 1 or 0 in next(iter(shapes)):
        raise ValueError(f"the rows of a contact sheet must share one shape, got {[c.shape for c in rows]}")
    count, height, width, _ = shapes.pop()
    columns = min(count, SHEET_COLUMNS)
    blocks = -(-count // columns)
    cell_h, cell_w = height + SHEET_GAP, width + SHEET_GAP
    size = (blocks * len(rows) * cell_h - SHEET_GAP, columns * cell_w - SHEET_GAP, 3)
    sheet = np.full(size, SHEET_GREY, np.uint8)
    for row, clip in enumerate(rows):
        for i, image in enumerate(clip):
            top = (i // columns * len(rows) + row) * cell_h
            left = i % columns * cell_w
            sheet[top : top + height, left : left + width] = image
    return sheet
