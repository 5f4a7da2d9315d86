"""How a worker process lives: it ends with its parent process, and not before, and holds no memory that it
does not use."""

import multiprocessing
import os
import signal
import threading

from fyp_jax.freed_memory import give_back

SECONDS_BETWEEN_GIVING_BACK = 60
"""How often a worker gives the memory of clips that it has decoded back to the system."""


def set_up_worker(*ignored: signal.Signals) -> None:
    """Set up this worker process: it ignores the given signals, and ends when its parent does.

    Call it first in a worker. The parent handles the signals and decides when its workers end. From then on
    the worker gives freed memory back once a minute.
    """
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join(SECONDS_BETWEEN_GIVING_BACK)
    while parent.is_alive():
        give_back()
        parent.join(SECONDS_BETWEEN_GIVING_BACK)
    os._exit(1)
