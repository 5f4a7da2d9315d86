"""The progress log of an ingest: the fingerprint of its source, then one JSON line for each complete shard.

A run that is killed leaves complete shards and, in the log, what is in them. The next run writes the others,
so the result depends on the source alone, and not on the runner, its workers or interruptions.
"""

import fcntl
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from fyp_jax.data.ingest.shards import Shard
from fyp_jax.data.shard_files import shard_name
from fyp_jax.errors import UserError

_MARK = ".complete.json"


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


def resume(
    log: IO[bytes], kind: str, work: Path, source_fingerprint: str, overwrite: bool
) -> dict[int, Shard]:
    """Return the complete shards of an earlier run by their index, and remove all else from log and folder.

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
    work.mkdir(exist_ok=True)
    shards: dict[int, Shard] = {}
    if same_source:
        marks = [path.read_bytes() for path in sorted(work.glob(f"*{_MARK}"))]
        for shard in map(_parse_shard, [*lines, *marks]):
            if shard is None:
                continue
            file = work / shard_name(kind, shard.index)
            if file.is_file() and file.stat().st_size == shard.file_bytes:
                shards[shard.index] = shard
    log.truncate(0)
    log.write(_json_line(source_fingerprint))
    for shard in shards.values():
        log.write(_json_line(shard._asdict()))
    _sync(log)
    names = {shard_name(kind, index) for index in shards}
    for file in work.iterdir():
        if file.name not in names:
            file.unlink()
    return shards


def mark_shard(work: Path, shard: Shard) -> None:
    """Write the file that says that a shard is complete, for a worker that cannot write to the log."""
    unfinished = work / f"unfinished-mark-{shard.index:05d}-{uuid.uuid4().hex}"
    with open(unfinished, "wb") as file:
        file.write(_json_line(shard._asdict()))
        _sync(file)
    unfinished.rename(work / f"{shard.index:05d}{_MARK}")


def log_shard(log: IO[bytes], shard: Shard) -> None:
    """Append a shard to the log, on disk when this returns."""
    log.write(_json_line(shard._asdict()))
    _sync(log)


def _parse_shard(line: bytes) -> Shard | None:
    """A shard of the log; None for a line of another version of this package."""
    try:
        return Shard(**json.loads(line))
    except (ValueError, TypeError):
        return None


def _json_line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
