"""Faults to inject: a kill at a named moment, files that change or are cut or deleted, and a full disk."""

import contextlib
import faulthandler
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

TIMEOUT = 300
"""Seconds after which a process counts as hung."""


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def array_files(item: Path) -> list[Path]:
    """The files of an item of a checkpoint that hold the bytes of its arrays, the largest first."""
    found = [path for path in files(item) if path.parent.name == "d"]
    return sorted(found, key=lambda path: -path.stat().st_size)


def flip_byte(path: Path, offset: int | None = None, seed: int = 0) -> None:
    """Invert one bit of a file: at the offset of a byte, or somewhere in its middle third."""
    content = bytearray(path.read_bytes())
    third = len(content) // 3
    content[random.Random(seed).randrange(third, 2 * third + 1) if offset is None else offset] ^= 0x10
    path.write_bytes(content)


def flip_bytes(path: Path, every: int = 997) -> None:
    """Invert one bit in each so-many-th byte. A single byte may be one that no array needs."""
    content = bytearray(path.read_bytes())
    for offset in range(every // 2, len(content), every):
        content[offset] ^= 0x10
    path.write_bytes(content)


def truncate(path: Path, bytes_lost: int = 10) -> None:
    path.write_bytes(path.read_bytes()[:-bytes_lost])


def delete(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def full_disk(largest_file: int = 0) -> Iterator[None]:
    """While it is open, this process can write no byte behind this position of any file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """While it is open, this process may go on for so long: then it prints all threads' stacks and ends.

    A signal's handler that raises would do it more gently, but it raises wherever Python happens to be: in a
    finalizer, or in pytest's own code, after the test.
    """
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until the condition holds; the process must not end before."""
    until = time.monotonic() + TIMEOUT
    while not condition():
        assert process.poll() is None, f"ended too early: {process.communicate()[1][-2000:]}"
        assert time.monotonic() < until, "hung"
        time.sleep(0.005)


def kill_when(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """`kill -9` at the moment at which the condition holds first."""
    wait_for(condition, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def without_networks(*_: object) -> None:
    """In place of what loads a worker's networks."""


def work_that_kills_its_process(job: object) -> str:
    """In place of the extraction of a film: one named fatal.mp4 ends its process, as the OOM killer does."""
    name = Path(job.film).name  # pyright: ignore[reportAttributeAccessIssue]
    if name == "fatal.mp4":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.2)
    return f"{name} is done"
