"""Files of a TFDS dataset: one array_record shard of serialised examples, and the metadata of all shards."""

import inspect
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from fyp_jax.data.datasets import FILE_FORMAT, SPLIT
from fyp_jax.errors import UserError, reason

_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}"  # TFDS's, for an unknown number of shards


def serialize(features: tfds.features.FeaturesDict, example: dict[str, Any]) -> bytes:
    """Serialise an example to the same bytes in every process, which TFDS's own function does not."""
    serializer = ExampleSerializer(features.get_serialized_info())  # pyright: ignore[reportArgumentType]
    return serializer.get_tf_example(features.encode_example(example)).SerializeToString(deterministic=True)


def shard_name(dataset: str, index: int) -> str:
    return f"{dataset}-{SPLIT}.{FILE_FORMAT}-{index:05d}"


def write_shard_file(path: Path, examples: Iterator[bytes]) -> int:
    """Write serialised examples to a file that gets its name when it is complete and on disk; gives its size
    in bytes.

    A cluster may start a piece of work twice at a time, so each writer has an unfinished file of its own.
    """
    unfinished = path.with_name(f"unfinished-{path.name.rpartition('-')[2]}-{uuid.uuid4().hex}")
    try:
        writer = tfds.core.ExampleWriter(tfds.core.FileFormat(FILE_FORMAT))
        writer.write(unfinished, enumerate(examples))  # pyright: ignore[reportArgumentType]
    except RuntimeError as error:  # array_record raises it for a full disk too
        raise UserError(f"{unfinished}: cannot be written ({reason(error)})") from error
    with open(unfinished, "rb") as file:
        os.fsync(file.fileno())
    unfinished.rename(path)
    return path.stat().st_size


def write_tfds_metadata(
    folder: Path,
    name: str,
    version: str,
    features: tfds.features.FeaturesDict,
    description: str | None,
    shard_lengths: Iterable[int],
    num_bytes: int,
    summary: dict[str, Any],
) -> None:
    """Write the metadata that TFDS and `open_dataset` read, with the number of records of each shard."""
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder,  # pyright: ignore[reportArgumentType]
        template=_TEMPLATE,
        dataset_name=name,
        split=SPLIT,
        filetype_suffix=FILE_FORMAT,
    )
    split = tfds.core.SplitInfo(
        name=SPLIT, shard_lengths=list(shard_lengths), num_bytes=num_bytes, filename_template=template
    )
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=features,
        split_infos=[split],
        version=version,
        filename_template=template,
        check_data=False,  # the check would need TensorFlow
        description=inspect.cleandoc(description or ""),
        disable_shuffling=True,
        metadata=tfds.core.MetadataDict(summary),
    )
