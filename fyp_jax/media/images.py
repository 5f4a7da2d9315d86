"""Frames as arrays of RGB in 0..255: resizing, cropping, image grids, and clips side by side."""

import textwrap
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import PIL.Image
from jaxtyping import UInt8
from PIL import ImageDraw, ImageFont

Frames = UInt8[np.ndarray, "f h w 3"]
Image = UInt8[np.ndarray, "h w 3"]

GRID_COLUMNS = 8
GRID_GAP = 4  # pixels
GRID_GREY = 128
CLIP_GAP = 6  # pixels between clips that play side by side
CAPTION_LINE, LETTER = 12, 6  # pixels: the height of a line of text, and the width of a letter at most


def resize_center_crop(frames: Frames, height: int, width: int) -> UInt8[np.ndarray, "f {height} {width} 3"]:
    """Scale frames to cover height x width, with their aspect ratio kept, and crop them to the center."""
    h, w = frames.shape[1:3]
    if (h, w) == (height, width):
        return frames
    box = center_crop_box(h, w, height, width)  # resize() samples this box at fractions of a pixel
    # Pillow widens BICUBIC when it reduces, so that nothing aliases; LANCZOS rings more at thin lines.
    return np.stack(
        [
            np.asarray(PIL.Image.fromarray(frame).resize((width, height), PIL.Image.Resampling.BICUBIC, box))
            for frame in frames
        ]
    )


def center_crop_box(h: int, w: int, height: int, width: int) -> tuple[float, float, float, float]:
    """The box of a frame of h x w that `resize_center_crop` keeps: left, top, right, bottom in its pixels."""
    crop_h, crop_w = min(h, w * height / width), min(w, h * width / height)
    top, left = (h - crop_h) / 2, (w - crop_w) / 2
    return left, top, left + crop_w, top + crop_h


def frames_crc32(frames: Frames) -> int:
    """The CRC-32 by which records and inversions know frames again."""
    return zlib.crc32(np.ascontiguousarray(frames).data)


def image_grid(rows: Sequence[UInt8[np.ndarray, "_ _ _ 3"]]) -> Image:
    """Clips of one shape as rows of an image, with time from left to right and grey gaps.

    A row has at most 8 frames; the next frames of all rows follow below. Two clips of 24 frames make 3 blocks
    of 2 rows. Raises ValueError for no rows, no frames, or clips of different shapes.
    """
    shapes = {clip.shape for clip in rows}
    if len(shapes) != 1 or 0 in next(iter(shapes)):
        raise ValueError(
            f"rows of an image grid must have one shape and a frame, got {[c.shape for c in rows]}"
        )
    count, height, width, _ = shapes.pop()
    columns = min(count, GRID_COLUMNS)
    blocks = -(-count // columns)
    cell_h, cell_w = height + GRID_GAP, width + GRID_GAP
    size = (blocks * len(rows) * cell_h - GRID_GAP, columns * cell_w - GRID_GAP, 3)
    grid = np.full(size, GRID_GREY, np.uint8)
    for row, clip in enumerate(rows):
        for i, image in enumerate(clip):
            top = (i // columns * len(rows) + row) * cell_h
            left = i % columns * cell_w
            grid[top : top + height, left : left + width] = image
    return grid


def side_by_side(
    clips: Sequence[UInt8[np.ndarray, "f h w 3"]], captions: Sequence[str]
) -> UInt8[np.ndarray, "f H W 3"]:
    """Clips of one shape beside each other on white, each with its caption below, broken after commas and
    where a line would be wider than the clip.

    Raises ValueError unless there are as many captions as clips, and as many frames in each clip.
    """
    letters = max(clips[0].shape[2] // LETTER, 1)
    lines = ["\n".join(_broken(text, letters)) for text in captions]
    line_count = max(text.count("\n") + 1 for text in lines)
    frames = []
    for pictures in zip(*clips, strict=True):
        high, wide, _ = pictures[0].shape
        step = wide + CLIP_GAP
        size = (step * len(pictures) - CLIP_GAP, high + CAPTION_LINE * line_count + 4)
        canvas = PIL.Image.new("RGB", size, "white")
        pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(CAPTION_LINE - 2)
        for i, (picture, text) in enumerate(zip(pictures, lines, strict=True)):
            canvas.paste(PIL.Image.fromarray(picture), (step * i, 0))
            pen.multiline_text((step * i, high + 2), text, "black", font, spacing=1)
        frames.append(np.asarray(canvas))
    return np.stack(frames)


def _broken(text: str, letters: int) -> Iterator[str]:
    for part in text.replace(", ", ",\n").splitlines():
        yield from textwrap.wrap(part, letters)
