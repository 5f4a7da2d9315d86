"""What a command prints of errors that a library loses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from faults import TIMEOUT

LOSE_ERRORS = """
import asyncio
import sys

from fyp_jax.console import run_console

SOURCE = '''
async def never_finished():
    try:
        await anything()
    finally:
        raise ValueError("lost at the end")

async def finished():
    raise ValueError("lost by a task")
'''


class Pending:
    def __await__(self):
        yield


async def lose_a_task(coroutine):
    task = asyncio.create_task(coroutine)
    await asyncio.sleep(0)


def main():
    names = {"anything": Pending}
    exec(compile(SOURCE, sys.argv[1], "exec"), names)
    coroutine = names["never_finished"]()
    coroutine.send(None)
    del coroutine
    asyncio.run(lose_a_task(names["finished"]()))


run_console(main)
"""


@pytest.mark.parametrize(
    ("file", "printed"), [("site-packages/orbax/checkpoint/reading.py", 0), ("another/library.py", 1)]
)
def test_lost_errors_of_orbax_alone_are_left_out(file: str, printed: int):
    """A damaged checkpoint made Python print such an error for each of its arrays, with a traceback."""
    found = subprocess.run(
        [sys.executable, "-c", LOSE_ERRORS, file],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert found.returncode == 0
    for text in ("lost at the end", "lost by a task"):
        assert found.stderr.count(f"ValueError: {text}\n") == printed
    assert bool(found.stderr) == bool(printed)
