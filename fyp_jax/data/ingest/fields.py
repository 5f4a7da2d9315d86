"""The fields of a row: files, captions and poses. The functions raise ItemError for a value that is wrong."""

import itertools
import json
from collections.abc import Sequence
from typing import Any

from fyp_jax.data.ingest.encoding import decode_utf8
from fyp_jax.data.ingest.items import Blob, Caption, Item, ItemError
from fyp_jax.data.ingest.names import SourceFolder
from fyp_jax.data.ingest.rows import Row
from fyp_jax.errors import reason

CAPTION_COLUMNS = ("text", "caption", "prompt")
"""Columns of a caption; the first that a row has counts."""


def parse_captions(rows: Sequence[Row]) -> tuple[Caption, ...]:
    """Captions of a video, one or more, by start. Each row has one caption, or a single row has a list."""
    if len(rows) == 1 and isinstance(listed := _caption_value(rows[0]), list):
        if not all(isinstance(caption, dict) for caption in listed):
            raise ItemError('each caption of a list needs a frame: [{"frame": 0, "text": "..."}]')
        rows = listed
    if not rows:
        raise ItemError("has no caption")
    captions = []
    for row in rows:
        text = _caption_value(row)
        if text is None or (isinstance(text, str) and not text.strip()):
            raise ItemError("has no caption" if len(rows) == 1 else "one of its captions is empty")
        try:
            text.encode()
        except (AttributeError, UnicodeEncodeError) as error:
            raise ItemError("its caption is not text") from error
        captions.append(Caption(parse_frame(row.get("start_frame", row.get("frame", 0))), text.strip()))
    captions.sort()
    for before, after in itertools.pairwise(captions):
        if before.frame == after.frame:
            raise ItemError(f"two captions start at frame {after.frame}")
    return tuple(captions)


def _caption_value(row: Row) -> Any:
    return next((row[column] for column in CAPTION_COLUMNS if row.get(column) is not None), None)


def parse_frame(value: Any) -> int:
    """Frame number at which a caption starts; an empty value is frame 0."""
    try:
        frame = float(value or 0)
    except (TypeError, ValueError) as error:
        raise ItemError(f"the start frame {value!r} of a caption is not a number") from error
    if not (frame.is_integer() and 0 <= frame < 2**53):
        raise ItemError(f"the start frame {value!r} of a caption is not a whole number of at least 0")
    return int(frame)


def image_item(name: str, media: Blob, row: Row, skeleton: Blob | None, keypoints: Blob | str | None) -> Item:
    """An image with its one caption, and its pose: the skeleton image where there is one, else keypoints."""
    captions = parse_captions([row])
    if len(captions) > 1:
        raise ItemError(f"has {len(captions)} captions; an image must have one")
    if not skeleton and not keypoints:
        raise ItemError("has no skeleton and no keypoints; docs/inputs.md says how to give them")
    return Item(name, media, captions, skeleton, None if skeleton else keypoints)


def parse_pose(row: Row, folder: SourceFolder) -> tuple[Blob | None, Blob | str | None]:
    """Skeleton file and keypoints of a row, each None where it has none."""
    if row.get("skeleton"):
        return folder.find(str(row["skeleton"]), "skeleton"), None
    keypoints = row.get("keypoints")
    if isinstance(keypoints, str) and keypoints.strip() and keypoints.strip()[0] not in "[{":
        return None, folder.find(keypoints, "keypoint file")
    return None, keypoints_json(keypoints)


def keypoints_json(value: Any) -> str | None:
    """Keypoints as JSON text, from such text or from values that were parsed already."""
    return value if isinstance(value, str) or value is None else json.dumps(value)


def parse_json(text: str | bytes, what: str) -> Any:
    try:
        return json.loads(text)
    except UnicodeDecodeError as error:
        assert isinstance(text, bytes)
        decode_utf8(text, what)  # raises, with the encoding
        raise ItemError(f"{what} is not JSON ({reason(error)})") from error
    except (ValueError, RecursionError) as error:
        raise ItemError(f"{what} is not JSON ({reason(error)})") from error
