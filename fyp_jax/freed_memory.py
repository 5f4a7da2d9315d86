"""Memory that was freed goes back to the system, before a run grows with each step it saves.

The C library glibc hands out memory from arenas, eight for each core at most, and threads share them. Freed
memory stays in its arena, and a page goes back only where nothing on it is in use. To take memory again from
the system costs a second for each GB or two.
"""

import contextlib
import ctypes
import os
from pathlib import Path

SMALL_STEP = 1_000_000_000
"""A process that writes fewer bytes of a step than this gives back what it freed after each step."""
M_ARENA_MAX = -8
"""The option of glibc's mallopt for the number of arenas."""


def limit_arenas() -> None:
    """One arena for each core: with fewer arenas, freed memory lies together, and its pages can go back.

    Call it before a process starts threads. Without Linux and glibc it does nothing.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, os.cpu_count() or 1)


def give_back() -> None:
    """Give all freed memory of this process back. Without Linux and glibc it does nothing."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


class FreedMemory:
    """Gives freed memory back after each small step of a checkpoint; after larger ones once the process has
    grown by a step. Orbax's threads free copies of all arrays that they write."""

    def __init__(self):
        self._written = 0
        self._least: int | None = None

    def expect(self, written: int) -> None:
        """A step of so many bytes is now being written."""
        self._written = written

    def give_back(self) -> None:
        """Call it once the step is written. It does nothing where no step was written since the last call.

        Growth counts from the first call, and from the one after memory was given back.
        """
        written, self._written = self._written, 0
        if not written:
            return
        with contextlib.suppress(OSError):
            resident = resident_bytes()
            self._least = min(resident, self._least or resident)
            if written < SMALL_STEP or resident > self._least + written:
                give_back()
                self._least = None


def resident_bytes() -> int:
    """The memory that this process holds. Raises OSError where the system has no /proc."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
