"""Memory that was freed goes back to the system, once enough of it has gathered."""

import subprocess
import sys
from pathlib import Path

import pytest

from cli_utils import ROOT

GROW_AND_FREE = """
import numpy as np
from fyp_jax.checkpoints.freed_memory import FreedMemory, resident_bytes

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
