"""A folder without metadata, where NAME.txt lies beside NAME.mp4 and has its caption.

Images have NAME.skeleton.png, or keypoints in NAME.json or NAME.keypoints.json. Folders inside are read too.
"""

import os
from collections.abc import Iterator

from fyp_jax.data.ingest.fields import CAPTION_COLUMNS, parse_json
from fyp_jax.data.ingest.items import Blob, Item, ItemError
from fyp_jax.data.ingest.names import file_blob, is_litter
from fyp_jax.data.ingest.remote import SourcePath, walk_files
from fyp_jax.data.ingest.samples import find_media, media_suffixes, sample_item

_DOUBLE_SUFFIXES = (".keypoints.json", ".skeleton.png", ".skeleton.jpg", ".skeleton.jpeg", ".skeleton.webp")


def sidecar_items(kind: str, folder: SourcePath) -> Iterator[Item] | None:
    """Items of a folder, sorted by path; None where no video (or image) has a caption beside it."""
    groups: dict[str, list[str]] = {}
    for key, suffix in sorted(_files(folder)):
        groups.setdefault(key, []).append(suffix)
    if not any(_has_media(kind, suffixes) and _has(suffixes, ".txt") for suffixes in groups.values()):
        return None
    return (
        _item(kind, folder, key, suffixes)
        for key, suffixes in groups.items()
        if _has_media(kind, suffixes) or _has(suffixes, ".txt")
    )


def _files(folder: SourcePath) -> Iterator[tuple[str, str]]:
    """Path below the folder without suffix, and suffix, of each file."""
    for path in walk_files(folder):
        if not is_litter(path):
            cut = next((len(end) for end in _DOUBLE_SUFFIXES if path.lower().endswith(end)), 0)
            suffix = path[-cut:] if cut else os.path.splitext(path)[1]
            yield path.removesuffix(suffix), suffix


def _has(suffixes: list[str], wanted: str) -> bool:
    return any(suffix.lower() == wanted for suffix in suffixes)


def _has_media(kind: str, suffixes: list[str]) -> bool:
    return any(suffix.lower() in media_suffixes(kind) for suffix in suffixes)


def _item(kind: str, folder: SourcePath, key: str, suffixes: list[str]) -> Item:
    media = next(iter(find_media(kind, suffixes)), "")
    try:
        parts = {suffix: file_blob(folder / f"{key}{suffix}") for suffix in suffixes}
        if media and not _has(suffixes, ".txt") and not _has(suffixes, ".json"):
            raise ItemError(f"has no caption: there is no {os.path.basename(key)}.txt beside it")
        if kind == "pose_images":
            parts = _with_keypoints(parts)
        return sample_item(kind, key, parts)
    except ItemError as error:
        return Item(key + media, problem=str(error))
    except OSError as error:
        return Item(key + media, problem=f"cannot be read ({error.strerror})")


def _with_keypoints(parts: dict[str, Blob]) -> dict[str, Blob]:
    """Take a .json for a file of keypoints, unless it has the fields of a metadata row."""
    lower = {suffix.lower(): suffix for suffix in parts}
    if ".json" not in lower or ".keypoints.json" in lower:
        return parts
    row = parse_json(parts[lower[".json"]].read(), "its .json")
    if isinstance(row, dict) and any(row.get(column) is not None for column in CAPTION_COLUMNS):
        return parts
    return {".keypoints.json" if suffix == lower[".json"] else suffix: blob for suffix, blob in parts.items()}
