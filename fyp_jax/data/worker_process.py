"""How a worker process ends: with its parent process, and not before."""

import multiprocessing
import os
import signal
import threading


def exit_with_parent(*ignored: signal.Signals) -> None:
    """Make this worker process ignore the given signals and exit when its parent dies.

    Call it first in a worker. The parent handles the signals and decides when its workers end.
    """
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
