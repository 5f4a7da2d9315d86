"""Ctrl-C ends every command: in a finalizer, in a background job, and by force the second time."""

import signal
import subprocess
import sys
import time

import pytest

SCRIPT = """
import signal, sys, time, weakref
from fyp_jax.console import run_cli
from fyp_jax.interrupts import uninterrupted

def slow():
    print("in the finalizer", flush=True)
    time.sleep(0.3)

class WithDel:
    def __del__(self):
        slow()

class WithFinalize:
    def __init__(self):
        weakref.finalize(self, slow)

@uninterrupted
def whole(seconds):
    print("in main", flush=True)
    time.sleep(seconds)
    print("whole", file=sys.stderr)

def main():
    {body}

sys.exit(run_cli(main))
"""
GOES_ON = "; [time.sleep(0.01) for _ in range(6000)]"
IN_MAIN = 'print("in main", flush=True); time.sleep(60)'
DEAF = """
    try:
        print("in main", flush=True); time.sleep(60)
    finally:
        print("cleans up", flush=True); time.sleep(60)
"""


def interrupt(
    body: str, signals: int, ignored: bool = False, again_after: float | None = None
) -> tuple[int, str]:
    """The status and the errors of a program that gets SIGINT after each of its first lines, and, if it is
    given, once more after so many seconds."""
    command = [sys.executable, "-c", SCRIPT.format(body=body)]
    if ignored:
        command = ["sh", "-c", """trap '' INT; exec "$@" """, "sh", *command]
    program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert program.stdout is not None
    for _ in range(signals):
        program.stdout.readline()
        program.send_signal(signal.SIGINT)
    if again_after is not None:
        time.sleep(again_after)
        program.send_signal(signal.SIGINT)
    _, errors = program.communicate(timeout=50)
    return program.returncode, errors


@pytest.mark.parametrize("ignored", [False, True], ids=["foreground", "background job"])
def test_ctrl_c_ends_a_command_with_one_line(ignored: bool):
    assert interrupt(IN_MAIN, 1, ignored) == (130, "interrupted\n")


@pytest.mark.parametrize("after", [GOES_ON, ""], ids=["main goes on", "main returns"])
@pytest.mark.parametrize("owner", ["WithDel", "WithFinalize"])
def test_ctrl_c_inside_of_a_finalizer_is_not_lost(owner: str, after: str):
    assert interrupt(f"x = {owner}(); del x{after}", 1) == (130, "interrupted\n")


@pytest.mark.parametrize("after", [GOES_ON, ""], ids=["main goes on", "main returns"])
def test_ctrl_c_inside_of_an_uninterrupted_function_comes_after_it(after: str):
    assert interrupt(f"whole(0.3){after}", 1) == (130, "whole\ninterrupted\n")


def test_second_ctrl_c_ends_an_uninterrupted_function():
    status, errors = interrupt("whole(60)", 1, again_after=0.5)
    assert (status, errors) == (130, "interrupted\n")


def test_second_ctrl_c_ends_a_command_that_is_still_cleaning_up():
    assert interrupt(DEAF.strip(), 2) == (130, "interrupted\n")


def test_handler_from_before_comes_back():
    from fyp_jax.console import run_cli

    before = signal.getsignal(signal.SIGINT)
    seen = []
    assert run_cli(lambda: seen.append(signal.getsignal(signal.SIGINT))) == 0
    assert seen[0] is not before
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("program", "ends_at_once"),
    [
        ("train.py", True),
        ("/clone/scripts/edit.py", True),
        ("/environment/bin/fyp-sample", True),
        ("/environment/bin/pytest", False),
        ("", False),  # an interactive Python
    ],
)
def test_interrupt_while_a_command_imports_ends_it_without_a_traceback(program: str, ends_at_once: bool):
    interrupted = "import fyp_jax.cli; os.kill(os.getpid(), signal.SIGINT)"
    # A job in the background of a script inherits that it ignores Ctrl-C.
    heeds = "import os, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{heeds}; sys.argv = [{program!r}]; {interrupted}"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == -signal.SIGINT
    assert ("KeyboardInterrupt" in found.stderr) is not ends_at_once
