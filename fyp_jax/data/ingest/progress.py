"""The progress log of an ingest: the fingerprint of its source, then one JSON line for each complete shard.

A run that is killed leaves complete shards and, in the log, the number of items in them. The next run resumes
behind these items, so the result depends on the source alone, and not on the workers or on interruptions.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from fyp_jax.data.ingest.shards import Shard
from fyp_jax.data.shard_files import shard_name
from fyp_jax.errors import UserError


def log_path(target: Path) -> Path:
    """Path of the log of an ingest to `target`."""
    return target.with_name(f"{target.name}.progress.jsonl")


@contextmanager
def locked_log(target: Path) -> Iterator[IO[bytes]]:
    """Open the log for one process at a time. The lock ends with the process.

    Raises UserError where another process holds it.
    """
    with open(log_path(target), "a+b") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{target}: another process is writing this dataset") from error
        yield log


def resume(log: IO[bytes], kind: str, work: Path, source_fingerprint: str, overwrite: bool) -> list[Shard]:
    """Return the complete shards of an earlier run, and remove everything else from its log and folder.

    Raises UserError where that run had another source, unless `overwrite`.
    """
    log.seek(0)
    first, *lines = [line for line in log if line.endswith(b"\n")] or [b""]  # the last line may be cut off
    same_source = first == _json_line(source_fingerprint)
    if first != b"" and not same_source and not overwrite:
        raise UserError(
            f"{work}: an unfinished run with other data or another shard size is here; "
            "--overwrite starts over"
        )
    shards: list[Shard] = []
    for line in lines if same_source else []:
        shard, file = Shard(**json.loads(line)), work / shard_name(kind, len(shards))
        if shard.records and not (file.is_file() and file.stat().st_size == shard.file_bytes):
            break
        shards.append(shard)
    if same_source:
        log.truncate(len(first) + sum(map(len, lines[: len(shards)])))
    else:
        log.truncate(0)
        log.write(_json_line(source_fingerprint))
    _sync(log)
    work.mkdir(exist_ok=True)
    names = {shard_name(kind, index) for index, shard in enumerate(shards) if shard.records}
    for file in work.iterdir():
        if file.name not in names:
            file.unlink()
    return shards


def log_shard(log: IO[bytes], shard: Shard) -> None:
    """Append a shard to the log, on disk when this returns."""
    log.write(_json_line(shard._asdict()))
    _sync(log)


def _json_line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
