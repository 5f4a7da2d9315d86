"""The two datasets as TFDS builders, and their records. array_record, read and written without TensorFlow.

Records hold files as they were found, still encoded; `scripts/prepare_data.py` makes them, and any program
with TFDS reads them: `tfds.data_source("captioned_videos", data_dir="records", split="train")`.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf.json_format import ParseError
from google.protobuf.message import DecodeError

from fyp_jax.errors import UserError, reason

SPLIT = "train"
FILE_FORMAT = "array_record"
SUMMARY = "metadata.json"
"""Beside the shards: `digest`, a SHA-256 over all records in order, and `shard_bytes`, the files' sizes."""

# Scalar of objects: bytes as they are. tfds.features.Image would need TensorFlow.
_BYTES = tfds.features.Scalar(np.object_)


class _Prepared(tfds.core.ShardBasedBuilder, skip_registration=True):  # pyright: ignore
    """A dataset whose shards are written by `data/prepare.py`, which TFDS then reads."""

    VERSION = tfds.core.Version("1.0.0")
    FEATURES: tfds.features.FeaturesDict

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self, description=type(self).__doc__, features=self.FEATURES, disable_shuffling=True
        )

    def _shard_iterators_per_split(self, dl_manager: Any) -> NoReturn:
        raise UserError(f"{self.data_dir}: nothing there; scripts/prepare_data.py makes {self.name}")


class PoseImages(_Prepared):
    """Images of people with their poses, each a skeleton image or keypoints, and a caption.

    `image` is JPEG, PNG or WebP as found. `skeleton` is an encoded image of the same aspect, RGB on black,
    or b"" where there are `keypoints`: persons of 17 COCO joints, x and y in the image's pixels, confidence.
    """

    FEATURES = tfds.features.FeaturesDict(
        {
            "name": tfds.features.Text(),
            "image": _BYTES,
            "skeleton": _BYTES,
            "keypoints": tfds.features.Tensor(shape=(None, 17, 3), dtype=np.float32),
            "caption": tfds.features.Text(),
        }
    )


class CaptionedVideos(_Prepared):
    """Videos with captions, each with the frame from which it holds, ascending.

    `video` is a file that FFmpeg reads, `frames` how many frames of it decode, `fps` frames a second
    (0 where the file does not say).
    """

    FEATURES = tfds.features.FeaturesDict(
        {
            "name": tfds.features.Text(),
            "video": _BYTES,
            "frames": tfds.features.Scalar(np.int64),
            "fps": tfds.features.Scalar(np.float32),
            "captions": tfds.features.Sequence(
                {"frame": tfds.features.Scalar(np.int64), "text": tfds.features.Text()}
            ),
        }
    )


BUILDERS: dict[str, type[_Prepared]] = {builder.name: builder for builder in (PoseImages, CaptionedVideos)}
"""By kind: the name that is in a dataset's folder and its `dataset_info.json`."""


class RecordsError(UserError):
    """Records are missing, incomplete or not ours; the message opens with their path."""

    def __init__(self, path: str | os.PathLike[str], problem: str):
        super().__init__(f"{os.fspath(path)}: {problem}")


class Records:
    """Random access to the records of a dataset: `len(records)`, `records[i]`; goes to worker processes.

    `records[i]` is a dict with the fields of `PoseImages` or `CaptionedVideos`: text as str, files as bytes,
    `keypoints` float32 [p 17 3], `captions` as {"frame": int64 [n], "text": n str}.
    `kind` is "pose_images" or "captioned_videos"; `fingerprint` changes with the records, not
    with their path.
    Raises RecordsError for a record that cannot be read, IndexError beyond the last.
    """

    def __init__(self, path: Path, kind: str, fingerprint: str, source: Any):
        self.path, self.kind, self.fingerprint = path, kind, fingerprint
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        try:
            element = self._source[index]
        except (OSError, ValueError, RuntimeError, IndexError, DecodeError) as error:
            raise RecordsError(self.path, f"record {index} is not readable ({reason(error)})") from error
        element["name"] = element["name"].decode()
        if self.kind == "pose_images":
            element["caption"] = element["caption"].decode()
        else:
            frames, texts = element["captions"]["frame"], element["captions"]["text"]
            element["captions"] = {
                "frame": np.asarray(frames, np.int64),
                "text": [text.decode() for text in texts],
            }
        return element

    def __repr__(self) -> str:  # Grain compares it when an iterator is restored, maybe on another machine
        return f"Records({self.fingerprint})"


def open_records(path: str | os.PathLike[str]) -> Records:
    """Records below a folder: the one with `dataset_info.json`, or one above it that holds just one dataset.

    Raises RecordsError: no dataset there or several, one of another kind or format, a shard missing or cut.
    """
    if "://" in os.fspath(path):
        raise RecordsError(path, "records are read from a local or mounted folder: mount the bucket")
    folder = _dataset_folder(Path(path))
    try:
        builder = tfds.builder_from_directory(folder)
        summary = json.loads((folder / SUMMARY).read_text()) if (folder / SUMMARY).exists() else {}
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ParseError) as error:
        raise RecordsError(folder, f"its metadata cannot be read ({reason(error)})") from error
    kinds = " or ".join(BUILDERS)
    if builder.name not in BUILDERS:
        raise RecordsError(folder, f"is a dataset {builder.name}, not {kinds}")
    found = builder.info.file_format
    if found is None or found.value != FILE_FORMAT:
        raise RecordsError(
            folder, f"its files are {found.value if found else 'unknown'}, they must be {FILE_FORMAT}"
        )
    ours, theirs = BUILDERS[builder.name].FEATURES.get_serialized_info(), builder.info.features
    if theirs is None or theirs.get_serialized_info() != ours:
        raise RecordsError(folder, f"its fields are not those of our {builder.name}: {', '.join(ours)}")
    if SPLIT not in builder.info.splits:
        raise RecordsError(
            folder, f"has no split {SPLIT} (splits in it: {', '.join(builder.info.splits) or 'none'})"
        )
    split = builder.info.splits[SPLIT]
    _require_shards(folder, [Path(shard) for shard in split.filepaths], summary.get("shard_bytes"))
    digest = summary.get("digest") or hashlib.sha256((folder / "dataset_info.json").read_bytes()).hexdigest()
    fingerprint = (
        f"{builder.name} {builder.version}, {split.num_examples} records, "
        f"{int(split.num_bytes)} bytes, {digest[:16]}"
    )
    return Records(folder, builder.name, fingerprint, builder.as_data_source(split=SPLIT))  # pyright: ignore


def _dataset_folder(path: Path) -> Path:
    if not path.is_dir():
        raise RecordsError(path, "no such folder" if not path.exists() else "is a file, not a folder")
    if (path / "dataset_info.json").is_file():
        return path
    infos = sorted([*path.glob("*/dataset_info.json"), *path.glob("*/*/dataset_info.json")])
    found = [info.parent for info in infos if ".incomplete" not in str(info.relative_to(path))]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(str(folder.relative_to(path)) for folder in found)
        raise RecordsError(path, f"holds {len(found)} datasets, name one of them: {names}")
    begun = [*path.glob("*.incomplete"), *path.glob("*/*.incomplete")]
    hint = "its preparation was not finished: run scripts/prepare_data.py again" if begun else ""
    raise RecordsError(path, "no dataset_info.json in it or below; " + (hint or "prepare_data.py makes one"))


def _require_shards(folder: Path, shards: list[Path], sizes: list[int] | None) -> None:
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise RecordsError(folder, f"{len(missing)} of {len(shards)} shards missing, {missing[0]} the first")
    for shard, size in zip(shards, sizes or [], strict=sizes is not None):
        if shard.stat().st_size != size:
            raise RecordsError(
                shard, f"has {shard.stat().st_size} bytes of {size}: changed, or not copied whole"
            )
