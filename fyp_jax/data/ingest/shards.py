"""Writing a TFDS dataset: its array_record shards, its metadata, and the list of rejected items."""

import csv
import hashlib
import inspect
import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
from tqdm import tqdm

from fyp_jax.data.datasets import BUILDERS, FILE_FORMAT, SPLIT, SUMMARY_FILE
from fyp_jax.data.ingest.examples import ExampleResult
from fyp_jax.data.ingest.items import Rejection
from fyp_jax.errors import UserError, reason

REJECTED_FILE = "refused.csv"

_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}"  # TFDS's, for an unknown number of shards
_UNFINISHED = "unfinished"


class Shard(NamedTuple):
    """One complete shard, as a line of the progress log has it. The last may have no records, and no file."""

    items: int
    """Items that were read for it, with those that were rejected."""
    records: int
    record_bytes: int
    file_bytes: int
    digest: str
    """SHA-256 over the records."""
    rejected: list[list[str]]


def shard_name(kind: str, index: int) -> str:
    return f"{kind}-{SPLIT}.{FILE_FORMAT}-{index:05d}"


def write_shard(path: Path, results: Iterator[ExampleResult], shard_bytes: int, progress: tqdm) -> Shard:
    """Write the next results as one shard, until its records have `shard_bytes` or the results end.

    The file gets its name when it is complete and on disk.
    """
    items = records = record_bytes = 0
    rejected: list[list[str]] = []
    digest = hashlib.sha256()

    def take() -> Iterator[tuple[int, bytes]]:
        nonlocal items, records, record_bytes
        for result in results:
            items += 1
            progress.update()
            if result.rejection:
                rejected.append(list(result.rejection))
                continue
            records += 1
            record_bytes += len(result.example)
            digest.update(hashlib.sha256(result.example).digest())
            yield records, result.example
            if record_bytes >= shard_bytes:
                return

    unfinished = path.with_name(_UNFINISHED)
    try:
        tfds.core.ExampleWriter(tfds.core.FileFormat(FILE_FORMAT)).write(unfinished, take())
    except RuntimeError as error:  # array_record raises it for a full disk too
        raise UserError(f"{unfinished}: cannot be written ({reason(error)})") from error
    with open(unfinished, "rb") as file:
        os.fsync(file.fileno())
    file_bytes = unfinished.stat().st_size if records else 0
    if records:
        unfinished.rename(path)
    else:
        unfinished.unlink()
    return Shard(items, records, record_bytes, file_bytes, digest.hexdigest(), rejected)


def write_metadata(
    kind: str, folder: Path, shards: list[Shard], rejected: list[Rejection], source_fingerprint: str
) -> None:
    """Write the metadata that TFDS and `open_records` read, and the list of rejected items."""
    write_rejected(folder / REJECTED_FILE, rejected)
    builder = BUILDERS[kind]
    template = tfds.core.ShardedFileTemplate(
        data_dir=folder,  # pyright: ignore[reportArgumentType]
        template=_TEMPLATE,
        dataset_name=kind,
        split=SPLIT,
        filetype_suffix=FILE_FORMAT,
    )
    split = tfds.core.SplitInfo(
        name=SPLIT,
        shard_lengths=[shard.records for shard in shards],
        num_bytes=sum(shard.record_bytes for shard in shards),
        filename_template=template,
    )
    summary = {
        "digest": hashlib.sha256("".join(shard.digest for shard in shards).encode()).hexdigest(),
        "shard_bytes": [shard.file_bytes for shard in shards],
        "source": source_fingerprint,
    }
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features=builder.FEATURES,
        split_infos=[split],
        version=str(builder.VERSION),
        filename_template=template,
        check_data=False,  # the check would need TensorFlow
        description=inspect.cleandoc(builder.__doc__ or ""),
        disable_shuffling=True,
        metadata=tfds.core.MetadataDict(summary),
    )


def read_summary(folder: Path) -> dict[str, Any]:
    """Summary of a dataset as `write_metadata` wrote it; empty where there is none."""
    file = folder / SUMMARY_FILE
    try:
        return json.loads(file.read_text()) if file.is_file() else {}
    except ValueError:
        return {}


def write_rejected(file: Path, rejected: Iterable[Rejection]) -> None:
    with open(file, "w", encoding="utf-8", errors="backslashreplace", newline="") as text:
        csv.writer(text, lineterminator="\n").writerows([Rejection._fields, *rejected])


def read_rejected(file: Path) -> list[Rejection]:
    with open(file, encoding="utf-8", newline="") as text:
        return [Rejection(*row) for row in itertools.islice(csv.reader(text), 1, None)]


def replace_folder(target: Path, new: Path) -> None:
    """Rename a finished folder to its final name, in place of what is there."""
    replaced = target.with_name(f"{target.name}.replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if target.exists():
        target.rename(replaced)
    new.rename(target)
    shutil.rmtree(replaced, ignore_errors=True)
