"""LAION-Human as HumanSD publishes it: mapping_file_training.json, images, and poses in .npz files.

The mapping has, by key, {"img_path": ..., "pose_path": ..., "prompt": ...}. Its paths start at a folder above
it, so their first parts may be missing below the source.
"""

import json
from collections.abc import Iterator
from typing import Any

from fyp_jax.data.ingest.encoding import wrong_encoding
from fyp_jax.data.ingest.fields import image_item
from fyp_jax.data.ingest.items import Blob, Item, ItemError
from fyp_jax.data.ingest.names import SourceFolder, is_outside
from fyp_jax.data.ingest.remote import SourcePath, path_type
from fyp_jax.errors import UserError, reason
from fyp_jax.trees import list_names

MAPPING_FILE = "mapping_file_training.json"
_FIELDS = ("img_path", "pose_path", "prompt")


def find_mapping(source: SourcePath) -> SourcePath | None:
    """Return the mapping file in a source, or in one of its folders where there is just one."""
    candidates = (source / MAPPING_FILE, *source.glob(f"*/{MAPPING_FILE}"))
    found = [file for file in candidates if path_type(file) == "file"]
    return found[0] if found and (len(found) == 1 or found[0].parent == source) else None


def is_mapping(file: SourcePath) -> bool:
    """Whether a file is such a mapping, by its name or its first entry."""
    if file.name == MAPPING_FILE:
        return True
    with file.open("rb") as start:
        return file.suffix.lower() == ".json" and b'"img_path"' in start.read(2**16)


def humansd_items(kind: str, folder: SourceFolder, file: SourcePath) -> Iterator[Item]:
    """Items of a mapping, in its order. Raises UserError where it is no such mapping, or for videos."""
    if kind != "pose_images":
        raise UserError(f"{file}: is the mapping of LAION-Human, which is for images, not for videos")
    try:
        mapping = json.loads(file.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise UserError(wrong_encoding(file)) from error
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{file}: cannot be read as JSON ({reason(error)})") from error
    if not isinstance(mapping, dict):
        raise UserError(f"{file}: is not a JSON object with {', '.join(_FIELDS)} for each image")
    return (_item(folder, key, entry) for key, entry in mapping.items())


def _item(folder: SourceFolder, key: str, entry: Any) -> Item:
    name = key
    try:
        if not isinstance(entry, dict) or not all(isinstance(entry.get(field), str) for field in _FIELDS):
            has = f"has {list_names(list(entry))}" if isinstance(entry, dict) else "is no JSON object"
            raise ItemError(f"its entry in the mapping has no texts {', '.join(_FIELDS)}; it {has}")
        name = entry["img_path"]
        image = _find(folder, entry["img_path"], "image")
        name = folder.name_of(image)
        return image_item(
            name, image, {"text": entry["prompt"]}, None, _find(folder, entry["pose_path"], "pose")
        )
    except ItemError as error:
        return Item(name, problem=str(error))


def _find(folder: SourceFolder, path: str, what: str) -> Blob:
    """Find a file by its path, or by the end of it where just one file fits."""
    if is_outside(path):
        raise ItemError(f"its {what} is outside the source folder")
    parts = path.replace("\\", "/").split("/")
    ends = ["/".join(parts[start:]) for start in range(len(parts))]
    found = [end for end in ends if path_type(folder.path / end) == "file"]
    if len(found) > 1 and found[0] != ends[0]:
        raise ItemError(f"its {what} {path} fits {len(found)} files ({list_names(found)})")
    return folder.find(found[0] if found else path, what)
