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

def lose_a_future():
    asyncio.get_running_loop().create_future().set_exception(ValueError(LOST_BY_A_FUTURE))
'''


class Pending:
    def __await__(self):
        yield


async def lose_a_task(coroutine, lose_a_future):
    lose_a_future()
    task = asyncio.create_task(coroutine)
    await asyncio.sleep(0)


def main():
    names = {"anything": Pending, "asyncio": asyncio, "LOST_BY_A_FUTURE": sys.argv[2]}
    exec(compile(SOURCE, sys.argv[1], "exec"), names)
    coroutine = names["never_finished"]()
    coroutine.send(None)
    del coroutine
    asyncio.run(lose_a_task(names["finished"](), names["lose_a_future"]))


run_console(main)
"""


@pytest.mark.parametrize(
    ("file", "message", "printed"),
    [
        ("site-packages/orbax/checkpoint/reading.py", "DATA_LOSS [tensorstore_spec='...']", 0),
        ("another/library.py", "lost by a future", 1),
    ],
    ids=["of Orbax", "of another library"],
)
def test_lost_errors_of_orbax_alone_are_left_out(file: str, message: str, printed: int):
    """A damaged checkpoint made Python print such an error for each of its arrays, with a traceback."""
    found = subprocess.run(
        [sys.executable, "-c", LOSE_ERRORS, file, message],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert found.returncode == 0
    for text in ("lost at the end", "lost by a task", message):
        assert found.stderr.count(f"ValueError: {text}\n") == printed
    assert bool(found.stderr) == bool(printed)
