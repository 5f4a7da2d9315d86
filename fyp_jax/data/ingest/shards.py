"""Writing a TFDS dataset: its array_record shards, its metadata, and the list of rejected items."""

import csv
import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fyp_jax.data.datasets import BUILDERS, SUMMARY_FILE
from fyp_jax.data.ingest.examples import ExampleResult
from fyp_jax.data.ingest.items import Rejection
from fyp_jax.data.shard_files import shard_name, write_shard_file, write_tfds_metadata

REJECTED_FILE = "refused.csv"


class Shard(NamedTuple):
    """One complete shard, as a line of the progress log has it. It may have no records."""

    index: int
    items: int
    """Items that were read for it, with those that were rejected."""
    records: int
    record_bytes: int
    file_bytes: int
    digest: str
    """SHA-256 over the records."""
    rejected: list[list[str]]


def write_shard(
    folder: Path, kind: str, index: int, results: Iterable[ExampleResult], on_item: Callable[[], object]
) -> Shard:
    """Write all results as one shard; its file gets its name when it is complete and on disk."""
    items = records = record_bytes = 0
    rejected: list[list[str]] = []
    digest = hashlib.sha256()

    def take() -> Iterator[bytes]:
        nonlocal items, records, record_bytes
        for result in results:
            items += 1
            on_item()
            if result.rejection:
                rejected.append(list(result.rejection))
                continue
            records += 1
            record_bytes += len(result.example)
            digest.update(hashlib.sha256(result.example).digest())
            yield result.example

    file_bytes = write_shard_file(folder / shard_name(kind, index), take())
    return Shard(index, items, records, record_bytes, file_bytes, digest.hexdigest(), rejected)


def write_metadata(
    kind: str, folder: Path, shards: list[Shard], rejected: list[Rejection], source_fingerprint: str
) -> None:
    """Write the metadata that TFDS and `open_records` read, and the list of rejected items."""
    write_rejected(folder / REJECTED_FILE, rejected)
    builder = BUILDERS[kind]
    summary = {
        "digest": hashlib.sha256("".join(shard.digest for shard in shards).encode()).hexdigest(),
        "shard_bytes": [shard.file_bytes for shard in shards],
        "source": source_fingerprint,
    }
    write_tfds_metadata(
        folder,
        kind,
        str(builder.VERSION),
        builder.FEATURES,
        builder.__doc__,
        [shard.records for shard in shards],
        sum(shard.record_bytes for shard in shards),
        summary,
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
