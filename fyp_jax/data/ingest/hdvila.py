"""The published HDVILA captions: a CSV with part_id, clip_id, frame_id, caption, a clip's rows together.

The clip is PART/CLIP, part_PART/CLIP, part_PART/video_clips/CLIP (as published) or CLIP below the folder,
with or without .mp4. frame_id is the frame from which a caption holds. Where the ids of a clip are just
0, 1, 2, ..., they count captions, one every 64 frames.
"""

import itertools
import os
from collections.abc import Iterator
from typing import Any

from fyp_jax.data.ingest.fields import parse_captions, parse_frame
from fyp_jax.data.ingest.items import Item, ItemError
from fyp_jax.data.ingest.names import SourceFolder, is_outside
from fyp_jax.data.ingest.remote import SourcePath, path_type
from fyp_jax.data.ingest.rows import Row, require_columns
from fyp_jax.errors import UserError

HDVILA_COLUMNS = ("part_id", "clip_id", "frame_id", "caption")
FRAMES_PER_CAPTION = 64


def hdvila_items(
    kind: str, folder: SourceFolder, file: SourcePath, rows: Iterator[tuple[int, Row]]
) -> Iterator[Item]:
    """Items of the rows of a caption file. Raises UserError where a column is missing, or for images."""
    if kind != "captioned_videos":
        raise UserError(
            f"{file}: has the columns of the HDVILA captions, which are for videos, not for images"
        )
    listed = require_columns(HDVILA_COLUMNS, rows, file)
    grouped = itertools.groupby(listed, lambda row: (_text(row["part_id"]), _text(row["clip_id"])))
    return (_item(folder, *key, list(group)) for key, group in grouped)


def _text(value: Any) -> str:
    """A cell as text: JSON lines may have numbers, and null."""
    return "" if value is None else str(value)


def _item(folder: SourceFolder, part: str, clip: str, rows: list[Row]) -> Item:
    number = part.lstrip("0") or "0"
    bases = dict.fromkeys((part, number, f"part_{part}", f"part_{number}", f"part_{number}/video_clips", "."))
    name = os.path.normpath(f"{part}/{clip}")
    try:
        if not clip.strip():
            raise ItemError("has no clip_id")
        frames = [parse_frame(row["frame_id"]) for row in rows]
        counts_captions = len(frames) > 1 and frames == list(range(len(frames)))
        step = FRAMES_PER_CAPTION if counts_captions else 1
        rows = [
            {"frame": step * frame, "text": row["caption"]} for frame, row in zip(frames, rows, strict=True)
        ]
        for base, suffix in itertools.product(bases, ("", ".mp4")):
            path = os.path.normpath(f"{base}/{clip}{suffix}")
            if is_outside(path) or path_type(folder.path / path) == "file":
                return Item(path, folder.find(path), parse_captions(rows))
        raise ItemError(f"no such file; also tried {', '.join(list(bases)[1:])}, and the suffix .mp4")
    except ItemError as error:
        return Item(name, problem=str(error))
