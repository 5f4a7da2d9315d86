"""The commands. `train.py` and its like import them, and so do `fyp-train` and its like."""

import signal
import sys
import threading
from pathlib import Path


def _is_a_command(program: str) -> bool:
    """Whether a program, the first of a process's arguments, is one of ours."""
    path = Path(program)
    return path.name in ("train.py", "sample.py") or path.parent.name == "scripts" or path.name[:4] == "fyp-"


# The imports of a command take seconds. Python would answer Ctrl-C in them with a traceback, and a library
# can make another error of it. So the system ends the process, until `fyp_jax.interrupts` takes over.
if (
    _is_a_command((sys.argv or [""])[0])
    and threading.current_thread() is threading.main_thread()
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    signal.signal(signal.SIGINT, signal.SIG_DFL)
