"""Ingest: from a source of videos or images to a TFDS dataset.

Items are checked in parallel and written in their order. A run that was killed keeps its complete shards, and
the next run writes the others. The folder of the dataset gets its final name when all is written.
"""

import hashlib
import json
import os
import re
import shutil
from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

import tensorflow_datasets as tfds
from tqdm import tqdm

from fyp_jax.data.datasets import BUILDERS, SPLIT
from fyp_jax.data.ingest.beam_runner import check_beam_options, run_in_beam
from fyp_jax.data.ingest.examples import ExampleResult, make_example
from fyp_jax.data.ingest.find import find_items
from fyp_jax.data.ingest.items import Blob, Item, Rejection
from fyp_jax.data.ingest.plan import PlannedItem, plan_folder, plan_items, read_plan, write_plan
from fyp_jax.data.ingest.pool import example_pool
from fyp_jax.data.ingest.progress import locked_log, log_path, log_shard, mark_shard, resume
from fyp_jax.data.ingest.remote import SourcePath
from fyp_jax.data.ingest.shards import (
    REJECTED_FILE,
    Shard,
    read_rejected,
    read_summary,
    replace_folder,
    write_metadata,
    write_rejected,
    write_shard,
)
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
    source: SourcePath,
    out: Path,
    *,
    captions: SourcePath | None = None,
    workers: int = 1,
    shard_bytes: int = 256 * 2**20,
    overwrite: bool = False,
    beam_options: Sequence[str] | None = None,
) -> Report:
    """Write the dataset `out/KIND/VERSION` from a source, resume it, or find that it is there already.

    `kind` is "pose_images" or "captioned_videos"; `find.py` says what a source can be. A shard is full once
    the files of its items have `shard_bytes`. `refused.csv` in the dataset lists the rejected items with the
    reasons. `beam_options` name a runner of Apache Beam, which works in place of a pool of `workers`
    processes. The dataset depends on the source and the shard size alone, and not on what runs it.

    Raises UserError: the form of the source is unknown; all its items are rejected; the place holds a
    dataset or an unfinished run with other data (unless `overwrite`); another process is writing it; a
    worker process died; the disk is full.
    """
    if workers < 1 or shard_bytes < 1:
        raise UserError(f"workers={workers} and shard_bytes={shard_bytes} must be at least 1")
    if beam_options is not None:
        check_beam_options(beam_options)
        source, out = source.absolute(), out.absolute()  # workers may have another current folder
    listing = list_source(kind, source, captions, shard_bytes)
    target = out / kind / str(BUILDERS[kind].VERSION)
    if target.exists() and not overwrite:
        if read_summary(target).get("source") != listing.fingerprint:
            raise UserError(
                f"{target}: exists already, with other data or another shard size; --overwrite replaces it"
            )
        log_path(target).unlink(missing_ok=True)
        return _report(target, new=False)
    with wrap_write_errors(target), locked_log(target) as log:
        work = target.with_name(f"{target.name}.incomplete")
        shards = resume(log, kind, work, listing.fingerprint, overwrite)
        planned = plan_items(find_items(kind, source, captions), shard_bytes)
        if beam_options is None:
            _run_in_pool(kind, planned, work, shards, listing, workers, log)
        else:
            _run_in_beam(kind, planned, work, shards, beam_options)
            shards = resume(log, kind, work, listing.fingerprint, overwrite)
        written = [shards[index] for index in sorted(shards)]
        items = sum(shard.items for shard in written)
        if (len(written), items) != (listing.shards, listing.items):
            raise UserError(
                f"{source}: changed during the run: {items} items were read, it had {listing.items}; "
                "--overwrite starts over"
            )
        rejected = [Rejection(*pair) for shard in written for pair in shard.rejected]
        records = sum(shard.records for shard in written)
        if records:
            write_metadata(kind, work, written, rejected, listing.fingerprint)
            replace_folder(target, work)
        else:
            write_rejected(target.with_name(REJECTED_FILE), rejected)
            shutil.rmtree(work)
        shutil.rmtree(plan_folder(work), ignore_errors=True)
        log_path(target).unlink()
    if not records:
        name, why = rejected[0]
        raise UserError(
            f"{source}: all {listing.items} items were rejected, see {target.with_name(REJECTED_FILE)}; "
            f"the first is {name}: {why}"
        )
    return _report(target, new=True)


class Listing(NamedTuple):
    """What a source lists."""

    items: int
    shards: int
    fingerprint: str
    """SHA-256 of all that the dataset depends on."""


def list_source(kind: str, source: SourcePath, captions: SourcePath | None, shard_bytes: int) -> Listing:
    """Count the items of a source and the shards that they make, and take their fingerprint.

    The contents of files stand in it by their sizes and modification times.
    """
    digest = hashlib.sha256(json.dumps([kind, str(BUILDERS[kind].VERSION), shard_bytes]).encode())
    count = shards = 0
    try:
        items = find_items(kind, source, captions)
        listed = plan_items(iter(tqdm(items, "listing", unit=" items", leave=False)), shard_bytes)
        for planned in listed:
            count += 1
            shards = planned.shard + 1
            fields = [
                (os.path.relpath(field.path, str(source)), *field[1:]) if isinstance(field, Blob) else field
                for field in planned.item
            ]
            digest.update(json.dumps(fields).encode())
    except OSError as error:
        raise UserError(f"{error.filename or source}: cannot be read ({error.strerror})") from error
    if count == 0:
        raise UserError(f"{source}: lists no items")
    return Listing(count, shards, digest.hexdigest())


def _run_in_pool(
    kind: str,
    planned: Iterator[PlannedItem],
    work: Path,
    shards: dict[int, Shard],
    listing: Listing,
    workers: int,
    log: IO[bytes],
) -> None:
    """Write the shards that are missing one after the other, and add them to `shards` and to the log."""
    in_work: deque[PlannedItem] = deque()

    def items() -> Iterator[Item]:
        for one in planned:
            if one.shard not in done:
                in_work.append(one)
                yield one.item

    def of_one_shard(results: Iterator[ExampleResult]) -> Iterator[ExampleResult]:
        for result in results:
            last = in_work.popleft().last
            yield result
            if last:
                return

    done, before = set(shards), sum(shard.items for shard in shards.values())
    with (
        example_pool(kind, workers) as make_examples,
        tqdm(total=listing.items, initial=before, unit=" items", dynamic_ncols=True) as progress,
    ):
        results = make_examples(items())
        for index in range(listing.shards):
            if index not in done:
                shards[index] = write_shard(work, kind, index, of_one_shard(results), progress.update)
                log_shard(log, shards[index])


class _ShardJob(NamedTuple):
    """What a Beam worker needs to know to write a shard. Paths are absolute."""

    kind: str
    work: str
    plan: str
    index: int


def _run_in_beam(
    kind: str,
    planned: Iterator[PlannedItem],
    work: Path,
    shards: dict[int, Shard],
    beam_options: Sequence[str],
) -> None:
    """Write the shards that are missing, each by one worker, which marks it as complete."""
    plan = plan_folder(work).absolute()
    shutil.rmtree(plan, ignore_errors=True)
    missing = write_plan(plan, planned, shards)
    jobs = [_ShardJob(kind, str(work.absolute()), str(plan), index) for index in missing]
    if jobs:
        run_in_beam(write_planned_shard, jobs, beam_options, "run the same command again to resume")


def write_planned_shard(job: _ShardJob) -> None:
    """Write one shard of a plan, by the functions that the pool calls. It may run twice."""
    work = Path(job.work)
    results = map(partial(make_example, job.kind), read_plan(Path(job.plan), job.index))
    mark_shard(work, write_shard(work, job.kind, job.index, results, lambda: None))


def _report(folder: Path, *, new: bool) -> Report:
    rejected = read_rejected(folder / REJECTED_FILE)
    split = tfds.builder_from_directory(folder).info.splits[SPLIT]
    size = sum(read_summary(folder)["shard_bytes"])
    return Report(folder, split.num_examples, split.num_shards, size, rejected, new)
