"""Ingest: from a source of videos or images to a TFDS dataset.

Items are checked in parallel and written in their order. A run that was killed resumes behind its last
complete shard. The folder of the dataset gets its final name when all is written.
"""

import hashlib
import itertools
import json
import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import tensorflow_datasets as tfds
from tqdm import tqdm

from fyp_jax.data.datasets import BUILDERS, SPLIT
from fyp_jax.data.ingest.find import find_items
from fyp_jax.data.ingest.items import Blob, Rejection
from fyp_jax.data.ingest.pool import example_pool
from fyp_jax.data.ingest.progress import locked_log, log_path, log_shard, resume
from fyp_jax.data.ingest.shards import (
    REJECTED_FILE,
    read_rejected,
    read_summary,
    replace_folder,
    write_metadata,
    write_rejected,
    write_shard,
)
from fyp_jax.data.shard_files import shard_name
from fyp_jax.errors import UserError, wrap_write_errors


class Report(NamedTuple):
    """What a dataset holds, and what was rejected."""

    folder: Path
    records: int
    shards: int
    bytes: int
    """Size of the shard files."""
    rejected: list[Rejection]
    new: bool
    """False where the dataset was there already."""

    def by_reason(self) -> list[tuple[str, list[str]]]:
        """Each reason with the names of its items, most frequent first.

        Reasons that differ in numbers alone count as one; the first stands for them.
        """
        names: dict[str, list[str]] = {}
        reasons: dict[str, str] = {}
        for rejection in self.rejected:
            pattern = re.sub(r"\d+(\.\d+)?", "N", rejection.reason)
            names.setdefault(pattern, []).append(rejection.name)
            reasons.setdefault(pattern, rejection.reason)
        pairs = ((reasons[pattern], names[pattern]) for pattern in names)
        return sorted(pairs, key=lambda pair: -len(pair[1]))


def ingest(
    kind: str,
    source: Path,
    out: Path,
    *,
    captions: Path | None = None,
    workers: int = 1,
    shard_bytes: int = 256 * 2**20,
    overwrite: bool = False,
) -> Report:
    """Write the dataset `out/KIND/VERSION` from a source, resume it, or find that it is there already.

    `kind` is "pose_images" or "captioned_videos"; `find.py` says what a source can be. A shard is full once
    its records have `shard_bytes`. `refused.csv` in the dataset lists the rejected items with the reasons.
    The dataset depends on the source and the shard size alone, and not on the number of workers.

    Raises UserError: the form of the source is unknown; all its items are rejected; the place holds a
    dataset or an unfinished run with other data (unless `overwrite`); another process is writing it; a
    worker process died; the disk is full.
    """
    if workers < 1 or shard_bytes < 1:
        raise UserError(f"workers={workers} and shard_bytes={shard_bytes} must be at least 1")
    total, fingerprint = fingerprint_source(kind, source, captions, shard_bytes)
    target = out / kind / str(BUILDERS[kind].VERSION)
    if target.exists() and not overwrite:
        if read_summary(target).get("source") != fingerprint:
            raise UserError(
                f"{target}: exists already, with other data or another shard size; --overwrite replaces it"
            )
        log_path(target).unlink(missing_ok=True)
        return _report(target, new=False)
    with wrap_write_errors(target), locked_log(target) as log:
        work = target.with_name(f"{target.name}.incomplete")
        shards = resume(log, kind, work, fingerprint, overwrite)
        done = sum(shard.items for shard in shards)
        items = itertools.islice(find_items(kind, source, captions), done, None)
        with (
            example_pool(kind, workers) as make_examples,
            tqdm(total=total, initial=done, unit=" items", dynamic_ncols=True) as progress,
        ):
            results = make_examples(items)
            while done < total:
                path = work / shard_name(kind, len(shards))
                shards.append(write_shard(path, results, shard_bytes, progress))
                done += shards[-1].items
                if shards[-1].items == 0:
                    raise UserError(f"{source}: changed during the run: it has {done} items now, had {total}")
                log_shard(log, shards[-1])
        rejected = [Rejection(*pair) for shard in shards for pair in shard.rejected]
        nonempty = [shard for shard in shards if shard.records]
        if nonempty:
            write_metadata(kind, work, nonempty, rejected, fingerprint)
            replace_folder(target, work)
        else:
            write_rejected(target.with_name(REJECTED_FILE), rejected)
            shutil.rmtree(work)
        log_path(target).unlink()
    if not nonempty:
        name, why = rejected[0]
        raise UserError(
            f"{source}: all {total} items were rejected, see {target.with_name(REJECTED_FILE)}; "
            f"the first is {name}: {why}"
        )
    return _report(target, new=True)


def fingerprint_source(kind: str, source: Path, captions: Path | None, shard_bytes: int) -> tuple[int, str]:
    """Number of items in a source, and a SHA-256 of all that the dataset depends on.

    The contents of files stand in it by their sizes and modification times.
    """
    digest = hashlib.sha256(json.dumps([kind, str(BUILDERS[kind].VERSION), shard_bytes]).encode())
    count = 0
    try:
        items = find_items(kind, source, captions)
        for item in tqdm(items, "listing", unit=" items", leave=False):
            count += 1
            fields = [
                (os.path.relpath(field.path, source), *field[1:]) if isinstance(field, Blob) else field
                for field in item
            ]
            digest.update(json.dumps(fields).encode())
    except OSError as error:
        raise UserError(f"{error.filename or source}: cannot be read ({error.strerror})") from error
    if count == 0:
        raise UserError(f"{source}: lists no items")
    return count, digest.hexdigest()


def _report(folder: Path, *, new: bool) -> Report:
    rejected = read_rejected(folder / REJECTED_FILE)
    split = tfds.builder_from_directory(folder).info.splits[SPLIT]
    size = sum(read_summary(folder)["shard_bytes"])
    return Report(folder, split.num_examples, split.num_shards, size, rejected, new)
