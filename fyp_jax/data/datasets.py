"""The two datasets as TFDS builders, and access to their records, in array_record files, without TensorFlow.

Records hold the encoded files of the source, byte for byte. `scripts/prepare_data.py` writes them, and any
program with TFDS reads them: `tfds.data_source("captioned_videos", data_dir="records", split="train")`.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf.json_format import ParseError
from google.protobuf.message import DecodeError

from fyp_jax.data.config import SYNTHETIC
from fyp_jax.data.synthetic_source import SyntheticRecordSource, open_synthetic
from fyp_jax.errors import UserError, reason

SPLIT = "train"
FILE_FORMAT = "array_record"
SUMMARY_FILE = "metadata.json"
"""A file beside the shards: a `digest` (SHA-256 over all records in order), the sizes of the shard files
(`shard_bytes`), and a fingerprint of the `source`."""

# A scalar of dtype object holds bytes unchanged. tfds.features.Image would need TensorFlow.
_BYTES = tfds.features.Scalar(np.object_)


class _IngestedBuilder(tfds.core.ShardBasedBuilder, skip_registration=True):  # pyright: ignore
    """A dataset whose shards `data.ingest` writes, and TFDS reads."""

    VERSION = tfds.core.Version("1.0.0")
    FEATURES: tfds.features.FeaturesDict

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self, description=type(self).__doc__, features=self.FEATURES, disable_shuffling=True
        )

    def _shard_iterators_per_split(self, dl_manager: Any) -> NoReturn:
        raise UserError(f"{self.data_dir}: no dataset here; create {self.name} with scripts/prepare_data.py")


class PoseImages(_IngestedBuilder):
    """Images of people, each with a pose (a skeleton image or keypoints) and a caption.

    `image` is a JPEG, PNG or WebP file, unchanged. `skeleton` is an encoded image of the same aspect ratio,
    RGB on black, or b"" where there are `keypoints`: 17 COCO joints per person, each with x and y in pixels
    of the image and a confidence.
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


class CaptionedVideos(_IngestedBuilder):
    """Videos with captions, each with the frame from which it holds, in ascending order.

    `video` is a file that FFmpeg reads, `frames` the number of frames that decode, `fps` the frames per
    second (0 where the file does not say).
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


BUILDERS: dict[str, type[_IngestedBuilder]] = {
    builder.name: builder for builder in (PoseImages, CaptionedVideos)
}
"""Builders by kind, which is the name in a dataset's folder and its `dataset_info.json`."""


class RecordsError(UserError):
    """A dataset is missing, incomplete, or of another format; the message starts with its path."""

    def __init__(self, path: str | os.PathLike[str], problem: str):
        super().__init__(f"{os.fspath(path)}: {problem}")


class TfdsRecordSource:
    """Random access to the records of a dataset: `len(records)`, `records[i]`. It can be pickled.

    `records[i]` is a dict with the fields of `PoseImages` or `CaptionedVideos`: text as str, files as bytes,
    `keypoints` float32 [p 17 3], `captions` as {"frame": int64 [n], "text": list of n str}.
    `kind` is "pose_images" or "captioned_videos". `fingerprint` depends on the records, not on their path.
    Raises RecordsError for a record that cannot be read, IndexError for an index out of range.
    """

    def __init__(self, path: Path, kind: str, fingerprint: str, source: Any):
        self.path, self.kind, self.fingerprint = path, kind, fingerprint
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        record = read_record(self.path, self._source, index)
        record["name"] = record["name"].decode()
        if self.kind == "pose_images":
            record["caption"] = record["caption"].decode()
        else:
            frames, texts = record["captions"]["frame"], record["captions"]["text"]
            record["captions"] = {
                "frame": np.asarray(frames, np.int64),
                "text": [text.decode() for text in texts],
            }
        return record

    def __repr__(self) -> str:  # Grain compares it when it restores an iterator, perhaps on another machine
        return f"TfdsRecordSource({self.fingerprint})"


def open_records(path: str | os.PathLike[str]) -> TfdsRecordSource | SyntheticRecordSource:
    """Open the dataset in a folder that has `dataset_info.json`, or in one above it with a single dataset.

    A path that starts with synthetic:// opens the synthetic world (`data.synthetic_source`) instead. Raises
    UserError where that has no such kind, RecordsError where there is no dataset or several, where it has
    another kind or format, and where a shard is missing or incomplete.
    """
    if os.fspath(path).startswith(SYNTHETIC):
        return open_synthetic(os.fspath(path))
    if "://" in os.fspath(path):
        raise RecordsError(path, "records must be in a local folder; mount the bucket first")
    folder = _dataset_folder(Path(path))
    dataset = open_dataset(folder)
    builder = dataset.builder
    if builder.name not in BUILDERS:
        raise RecordsError(folder, f"holds the dataset {builder.name}, not {' or '.join(BUILDERS)}")
    expected, features = BUILDERS[builder.name].FEATURES.get_serialized_info(), builder.info.features
    if features is None or features.get_serialized_info() != expected:
        raise RecordsError(
            folder, f"its features are not those of {builder.name}, which are {', '.join(expected)}"
        )
    split = dataset.split
    fingerprint = (
        f"{builder.name} {builder.version}, {split.num_examples} records, "
        f"{int(split.num_bytes)} bytes, {dataset.digest[:16]}"
    )
    return TfdsRecordSource(folder, builder.name, fingerprint, dataset.source)


class Dataset(NamedTuple):
    """A dataset in array_record files whose shards are all there."""

    builder: Any
    """TFDS's builder, with the dataset's info."""
    split: Any
    """TFDS's info on the split."""
    source: Any
    """Random access to the records, as TFDS decodes them."""
    summary: dict[str, Any]
    """What SUMMARY_FILE holds."""
    digest: str
    """SHA-256 over the records."""


def open_dataset(folder: Path) -> Dataset:
    """Open the dataset of a folder that has `dataset_info.json`, whatever its features are.

    Raises RecordsError where its metadata cannot be read, where it has another format or no split SPLIT, and
    where a shard is missing or incomplete.
    """
    try:
        builder = tfds.builder_from_directory(folder)
        summary = json.loads((folder / SUMMARY_FILE).read_text()) if (folder / SUMMARY_FILE).exists() else {}
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ParseError) as error:
        raise RecordsError(folder, f"its metadata cannot be read ({reason(error)})") from error
    found = builder.info.file_format
    if found is None or found.value != FILE_FORMAT:
        raise RecordsError(
            folder, f"its file format is {found.value if found else 'unknown'}, it must be {FILE_FORMAT}"
        )
    if SPLIT not in builder.info.splits:
        raise RecordsError(
            folder, f"has no split {SPLIT} (its splits: {', '.join(builder.info.splits) or 'none'})"
        )
    split = builder.info.splits[SPLIT]
    _require_shards(folder, [Path(shard) for shard in split.filepaths], summary.get("shard_bytes"))
    digest = summary.get("digest") or hashlib.sha256((folder / "dataset_info.json").read_bytes()).hexdigest()
    source = builder.as_data_source(split=SPLIT)  # pyright: ignore
    return Dataset(builder, split, source, summary, digest)


def read_record(path: Path, source: Any, index: int) -> dict[str, Any]:
    """Record of a dataset's `source` as TFDS decodes it. Raises RecordsError where it cannot be read."""
    try:
        return source[index]
    except (OSError, ValueError, RuntimeError, IndexError, DecodeError) as error:
        raise RecordsError(path, f"record {index} cannot be read ({reason(error)})") from error


def _dataset_folder(path: Path) -> Path:
    if not path.is_dir():
        raise RecordsError(path, "no such folder" if not path.exists() else "is a file, not a folder")
    if (path / "latent_clips").is_dir() or path.parent.name == "latent_clips":
        raise RecordsError(path, "holds cached latents, which data.cached_latents=true trains from")
    if (path / "dataset_info.json").is_file():
        return path
    infos = sorted([*path.glob("*/dataset_info.json"), *path.glob("*/*/dataset_info.json")])
    found = [info.parent for info in infos if ".incomplete" not in str(info.relative_to(path))]
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(str(folder.relative_to(path)) for folder in found)
        raise RecordsError(path, f"holds {len(found)} datasets, give the path of one of them: {names}")
    unfinished = [*path.glob("*.incomplete"), *path.glob("*/*.incomplete")]
    hint = (
        "scripts/prepare_data.py did not finish, run the same command again"
        if unfinished
        else "create a dataset with scripts/prepare_data.py"
    )
    raise RecordsError(path, f"no dataset_info.json in it or below; {hint}")


def _require_shards(folder: Path, shards: list[Path], sizes: list[int] | None) -> None:
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise RecordsError(
            folder, f"{len(missing)} of {len(shards)} shards are missing, the first is {missing[0]}"
        )
    for shard, size in zip(shards, sizes or [], strict=sizes is not None):
        if shard.stat().st_size != size:
            raise RecordsError(
                shard,
                f"has {shard.stat().st_size} bytes instead of {size}: changed, or not copied completely",
            )
