"""Tars in the layout of WebDataset: consecutive members KEY.* of a tar are one item.

Videos: KEY.mp4 (.webm, ...) and KEY.txt or KEY.json. Images: KEY.jpg (.png, .webp), KEY.skeleton.png or
KEY.keypoints.json, and KEY.txt or KEY.json. A KEY.json has the fields of a metadata row.
"""

import itertools
import tarfile
from collections.abc import Iterator
from pathlib import Path

from fyp_jax.data.ingest.fields import image_item, keypoints_json, parse_captions, parse_json
from fyp_jax.data.ingest.items import Blob, Item, ItemError
from fyp_jax.errors import reason

VIDEO_SUFFIXES = frozenset(
    (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".gif", ".mpg", ".mpeg", ".ts", ".wmv", ".flv")
)
IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp"))


def webdataset_items(kind: str, tar: Path, source: Path) -> Iterator[Item]:
    """Items of one tar; the rest of a tar that is cut off or damaged is one item with a problem."""
    tar_name = tar.relative_to(source)
    mtime_ns = tar.stat().st_mtime_ns
    try:
        # "r:" is uncompressed: members are read at their offset
        with tarfile.open(tar, "r:", errors="replace") as members:
            files = ((*_split_key(member.name), member) for member in members if member.isfile())
            for key, group in itertools.groupby(files, lambda file: file[0]):
                parts = {
                    suffix: Blob(str(tar), member.offset_data, member.size, mtime_ns)
                    for _, suffix, member in group
                }
                yield _item(kind, f"{tar_name}/{key}", parts)
    except (tarfile.TarError, OSError, EOFError) as error:
        yield Item(str(tar_name), problem=f"is not an uncompressed tar, or is cut off ({reason(error)})")


def _split_key(member: str) -> tuple[str, str]:
    """Key and suffix as WebDataset has them: cut at the first dot after the last slash."""
    folder, slash, name = member.rpartition("/")
    key, dot, suffix = name.partition(".")
    return f"{folder}{slash}{key}", f"{dot}{suffix}".lower()


def _item(kind: str, key: str, parts: dict[str, Blob]) -> Item:
    media_suffixes = VIDEO_SUFFIXES if kind == "captioned_videos" else IMAGE_SUFFIXES
    media = [suffix for suffix in parts if suffix in media_suffixes]
    name = key + media[0] if media else key
    try:
        if len(media) != 1:
            what = "video" if kind == "captioned_videos" else "image"
            raise ItemError(f"has {len(media)} {what}s among its members ({', '.join(sorted(parts))})")
        row = parse_json(parts[".json"].read(), "its .json") if ".json" in parts else {}
        if not isinstance(row, dict):
            raise ItemError("its .json is not a JSON object")
        if ".txt" in parts:
            row = {**row, "text": parts[".txt"].read().decode(errors="strict")}
        if kind == "captioned_videos":
            return Item(name, parts[media[0]], parse_captions([row]))
        skeletons = [parts[suffix] for suffix in parts if suffix.startswith(".skeleton.")]
        keypoints = parts.get(".keypoints.json", keypoints_json(row.get("keypoints")))
        return image_item(name, parts[media[0]], row, skeletons[0] if skeletons else None, keypoints)
    except (ItemError, UnicodeDecodeError) as error:
        return Item(name, problem=reason(error))
