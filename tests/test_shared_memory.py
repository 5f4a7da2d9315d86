"""Segments and semaphores in /dev/shm: those of a process that is gone are removed, others are not."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fyp_jax.data import shared_memory

pytestmark = pytest.mark.skipif(not shared_memory.FOLDER.is_dir(), reason="this system has no /dev/shm")

OWNER = """
import multiprocessing, time
from multiprocessing.shared_memory import SharedMemory
from fyp_jax.data.shared_memory import owner_prefix, use_prefix

use_prefix(owner_prefix())
segment = SharedMemory(create=True, size=100)
lock = multiprocessing.get_context("spawn").Lock()
print(segment.name, flush=True)
time.sleep(60)
"""


def left_by(pid: int) -> list[Path]:
    return list(shared_memory.FOLDER.glob(f"*fyp_jax-*-{pid}-*"))


@pytest.fixture
def owner() -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    for path in left_by(process.pid):
        path.unlink()


def test_what_a_killed_process_group_left_is_removed(owner: subprocess.Popen[str]):
    os.killpg(owner.pid, signal.SIGKILL)  # with Python's resource tracker, which would remove them
    owner.wait()
    assert len(left_by(owner.pid)) == 2, "a segment and a semaphore"
    assert shared_memory.remove_orphans() >= 2
    assert left_by(owner.pid) == []


def test_what_a_living_process_has_stays(owner: subprocess.Popen[str]):
    shared_memory.remove_orphans()
    assert len(left_by(owner.pid)) == 2


def test_what_a_process_of_another_container_has_stays():
    path = shared_memory.FOLDER / "fyp_jax-17-4194300-test"
    path.touch()
    try:
        shared_memory.remove_orphans()
        assert path.exists()
    finally:
        path.unlink()
