"""How a worker process ends: with the process that started it, and not before."""

import multiprocessing
import os
import signal
import threading


def exit_with_parent(*ignored: signal.Signals) -> None:
    """Call first in a worker: these signals are the parent's to hear; where it dies, the worker does too."""
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
