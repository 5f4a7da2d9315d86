"""A folder of files with metadata.csv or metadata.jsonl, one row per file.

Columns: `file_name` (or `video`, `image`, `path`, `file`) below the folder, and `text` (or `caption`,
`prompt`). Images also have `skeleton`, a file, or `keypoints`, JSON or a `.json` or `.npz` file. A video may
have several captions: consecutive rows with the same file_name and a `start_frame` (or `frame`), or, in JSON
lines, a list as `text`: [{"frame": 0, "text": "..."}, ...].
"""

import itertools
import os
from collections.abc import Iterator

from fyp_jax.data.ingest.fields import CAPTION_COLUMNS, image_item, parse_captions, parse_pose
from fyp_jax.data.ingest.items import Item, ItemError
from fyp_jax.data.ingest.names import SourceFolder
from fyp_jax.data.ingest.remote import SourcePath
from fyp_jax.data.ingest.rows import Row, require_columns
from fyp_jax.errors import UserError
from fyp_jax.trees import list_names

METADATA_FILES = ("metadata.csv", "metadata.jsonl")
FILE_COLUMNS = {
    "captioned_videos": ("file_name", "video", "path", "file"),
    "pose_images": ("file_name", "image", "path", "file"),
}
"""Columns of the file's name; the first that the metadata have counts."""


def metadata_items(
    kind: str, folder: SourceFolder, file: SourcePath, first: tuple[int, Row], rows: Iterator[tuple[int, Row]]
) -> Iterator[Item]:
    """Items of the rows of a metadata file, of which `first` (line, row) shows the columns.

    Raises UserError where a column is missing.
    """
    videos, columns = kind == "captioned_videos", first[1]
    poses = () if videos else (("skeleton", "keypoints"),)
    for needed in (FILE_COLUMNS[kind], CAPTION_COLUMNS, *poses):
        if not any(column in columns for column in needed):
            raise UserError(
                f"{file}: line {first[0]} has no column {', '.join(needed[:-1])} or {needed[-1]}; "
                f"its columns: {list_names(list(columns))}"
            )
    name_column = next(column for column in FILE_COLUMNS[kind] if column in columns)
    listed = require_columns((name_column,), rows, file)
    if videos:
        grouped = itertools.groupby(listed, lambda row: str(row[name_column]))
        return (item for name, group in grouped for item in _video_items(folder, name, list(group)))
    return (_item(kind, folder, str(row[name_column]), [row]) for row in listed)


def _video_items(folder: SourceFolder, name: str, rows: list[Row]) -> Iterator[Item]:
    """One item of a video's captions, where a row says from which frame on it holds; else one of each."""
    has_starts = any(row.get(column) is not None for row in rows for column in ("start_frame", "frame"))
    for group in [rows] if has_starts else [[row] for row in rows]:
        yield _item("captioned_videos", folder, name, group)


def _item(kind: str, folder: SourceFolder, file_name: str, rows: list[Row]) -> Item:
    name = os.path.normpath(file_name)
    try:
        media = folder.find(file_name)
        name = folder.name_of(media)
        if kind == "captioned_videos":
            return Item(name, media, parse_captions(rows))
        return image_item(name, media, rows[0], *parse_pose(rows[0], folder))
    except ItemError as error:
        return Item(name, problem=str(error))
