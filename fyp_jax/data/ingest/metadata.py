"""A folder of files with metadata.csv or metadata.jsonl, one row per file.

Columns: `file_name` below the folder, and `text` (or `caption`). Images also have `skeleton`, a file, or
`keypoints`, JSON or a `.json` file. A video may have several captions: consecutive rows with the same
file_name and a `start_frame` (or `frame`), or, in JSON lines, a list as `text`:
[{"frame": 0, "text": "..."}, ...].
"""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

from fyp_jax.data.ingest.fields import find_file, image_item, parse_captions, parse_pose
from fyp_jax.data.ingest.items import Item, ItemError
from fyp_jax.data.ingest.rows import Row, require_columns
from fyp_jax.errors import UserError

METADATA_FILES = ("metadata.csv", "metadata.jsonl")


def metadata_items(
    kind: str, folder: Path, file: Path, first: tuple[int, Row], rows: Iterator[tuple[int, Row]]
) -> Iterator[Item]:
    """Items of the rows of a metadata file, of which `first` (line, row) shows the columns.

    Raises UserError where a column is missing.
    """
    videos, columns = kind == "captioned_videos", set(first[1])
    poses = {"skeleton", "keypoints"}
    for needed in ({"file_name"}, {"text", "caption"}, *([] if videos else [poses])):
        if not columns & needed:
            raise UserError(
                f"{file}: line {first[0]} has no column {' or '.join(sorted(needed, reverse=True))}; "
                f"its columns: {', '.join(first[1])}"
            )
    listed = require_columns(("file_name",), rows, file)
    if videos and columns & {"start_frame", "frame"}:
        return (_item(kind, folder, list(group)) for _, group in itertools.groupby(listed, _file_name))
    return (_item(kind, folder, [row]) for row in listed)


def _file_name(row: Row) -> str:
    return str(row["file_name"])


def _item(kind: str, folder: Path, rows: list[Row]) -> Item:
    name = os.path.normpath(_file_name(rows[0]))
    try:
        media = find_file(folder, _file_name(rows[0]))
        if kind == "captioned_videos":
            return Item(name, media, parse_captions(rows))
        return image_item(name, media, rows[0], *parse_pose(rows[0], folder))
    except ItemError as error:
        return Item(name, problem=str(error))
