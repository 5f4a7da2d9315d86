"""The items of a source, listed in order. Nothing is decoded here.

A source has one of five forms: a folder with a metadata file (`metadata.py`), WebDataset tars
(`webdataset.py`), a folder with the captions of HDVILA (`hdvila.py`), LAION-Human (`humansd.py`), or files
with their captions beside them (`sidecar.py`).
"""

import itertools
from collections.abc import Iterator

from fyp_jax.data.ingest.hdvila import HDVILA_COLUMNS, hdvila_items
from fyp_jax.data.ingest.humansd import MAPPING_FILE, find_mapping, humansd_items, is_mapping
from fyp_jax.data.ingest.items import Item
from fyp_jax.data.ingest.metadata import METADATA_FILES, metadata_items
from fyp_jax.data.ingest.names import SourceFolder, is_litter
from fyp_jax.data.ingest.remote import SourcePath, path_type, remote_errors
from fyp_jax.data.ingest.rows import read_rows
from fyp_jax.data.ingest.sidecar import sidecar_items
from fyp_jax.data.ingest.webdataset import webdataset_items
from fyp_jax.errors import UserError
from fyp_jax.trees import list_names


def find_items(kind: str, source: SourcePath, captions: SourcePath | None = None) -> Iterator[Item]:
    """List the items of a source in its order; `kind` is "pose_images" or "captioned_videos".

    `captions` is a metadata file outside of the source folder. Raises UserError where the form of the source
    is unknown, where its metadata cannot be read or lacks a column (the message has the line), and where a
    remote source fails.
    """
    seen: set[str] = set()
    with remote_errors(source):
        for item in _all_items(kind, source, captions):
            if item.name in seen:
                yield Item(item.name, problem="has the same name as an earlier item")
            else:
                seen.add(item.name)
                yield item


def _all_items(kind: str, source: SourcePath, captions: SourcePath | None) -> Iterator[Item]:
    source_type = path_type(source)
    if not source_type:
        raise UserError(f"{source}: no such folder")
    if source_type == "file":
        if source.suffix != ".tar" or captions is not None:
            raise UserError(f"{source}: is a file; give a folder, or one .tar file without --captions")
        return webdataset_items(kind, source, source.parent)
    if captions is not None and path_type(captions) != "file":
        raise UserError(f"{captions}: no such file")
    found = [source / name for name in METADATA_FILES if path_type(source / name) == "file"]
    files = [captions] if captions else found
    if len(files) > 1:
        raise UserError(f"{source}: has both {' and '.join(METADATA_FILES)}; choose one with --captions")
    if files:
        return _listed_items(kind, source, files[0])
    entries = sorted(path for path in source.iterdir() if not is_litter(path.name))
    if tars := [path for path in entries if path.suffix == ".tar"]:
        return itertools.chain.from_iterable(webdataset_items(kind, tar, source) for tar in tars)
    if mapping := find_mapping(source):
        return humansd_items(kind, SourceFolder(source), mapping)
    if (items := sidecar_items(kind, source)) is not None:
        return items
    media = "NAME.mp4" if kind == "captioned_videos" else "NAME.jpg"
    raise UserError(
        f"{source}: has no {' or '.join(METADATA_FILES)} and no .tar files, no {MAPPING_FILE} and no {media} "
        f"with NAME.txt beside it, and --captions is not given; it has {len(entries)} entries"
        + (f": {list_names([path.name for path in entries])}" if entries else "")
    )


def _listed_items(kind: str, source: SourcePath, file: SourcePath) -> Iterator[Item]:
    folder = SourceFolder(source)
    if is_mapping(file):
        return humansd_items(kind, folder, file)
    rows = read_rows(file)
    first = next(rows, None)
    if first is None:
        raise UserError(f"{file}: has no rows")
    rows = itertools.chain([first], rows)
    if set(first[1]) >= set(HDVILA_COLUMNS):
        return hdvila_items(kind, folder, file, rows)
    return metadata_items(kind, folder, file, first, rows)
