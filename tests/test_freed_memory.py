"""Memory that was freed goes back to the system, once enough of it has gathered."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cli_utils import ROOT

GROW_AND_FREE = """
import numpy as np
from fyp_jax.freed_memory import FreedMemory, resident_bytes

def grow_and_free():
    blocks = [np.ones(8000) for _ in range(2000)]  # 128 MB, in pieces that glibc keeps when they are freed
    last.append(np.ones(8000))  # above them, so that the heap does not shrink by itself

def give_back(written):
    freed.expect(written)
    freed.give_back()

last, freed = [], FreedMemory()
give_back(2_000_000_000)
grow_and_free()
grown = resident_bytes()
give_back(2_000_000_000)
freed.give_back()  # no step was written
kept = resident_bytes()
give_back(1_000_000)
returned = resident_bytes()
freed._least = returned - 3_000_000_000  # as if it had grown
grow_and_free()
give_back(2_000_000_000)
print(grown, kept, returned, resident_bytes())
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="/proc tells no memory here")
def test_freed_memory_goes_back_after_a_small_step_and_where_the_process_has_grown_by_a_large_one():
    """In a process of its own: pytest's other tests leave holes that the pieces would fill."""
    run = subprocess.run(
        [sys.executable, "-c", GROW_AND_FREE], cwd=ROOT, text=True, capture_output=True, check=True
    )
    grown, kept, after_a_small_step, after_growth = map(int, run.stdout.split())
    assert abs(kept - grown) < 1_000_000
    assert after_a_small_step < grown - 100_000_000
    assert after_growth < grown - 100_000_000


COUNT_ARENAS = """
import ctypes, os, sys, threading
from fyp_jax.freed_memory import limit_arenas

libc = ctypes.CDLL(None)
libc.fopen.restype = libc.malloc.restype = ctypes.c_void_p
if sys.argv[1] == "limited":
    limit_arenas()
meeting = threading.Barrier(4 * os.cpu_count() + 1)

def allocate():
    libc.malloc(ctypes.c_size_t(1000))
    meeting.wait()  # a thread that ends leaves its arena to the next
    meeting.wait()

for _ in range(4 * os.cpu_count()):
    threading.Thread(target=allocate).start()
meeting.wait()
file = ctypes.c_void_p(libc.fopen(sys.argv[2].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
meeting.wait()
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="the C library is not glibc")
def test_threads_of_a_limited_process_share_one_arena_for_each_core(tmp_path: Path):
    arenas = {}
    for how in ("limited", "as it is"):
        file = tmp_path / how
        subprocess.run([sys.executable, "-c", COUNT_ARENAS, how, file], cwd=ROOT, check=True)
        arenas[how] = file.read_text().count("<heap nr=")
    assert arenas["limited"] <= os.cpu_count() < arenas["as it is"]
