"""Ctrl-C: the first one raises `KeyboardInterrupt` where it cannot get lost, the second ends the process."""

import functools
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import ParamSpec, TypeVar

Inputs = ParamSpec("Inputs")
Result = TypeVar("Result")

STATUS = 130  # of a command that Ctrl-C ended, as shells have it
RETRY_S = 0.05


@contextmanager
def interruptible() -> Iterator[None]:
    """Handle SIGINT within this block; the handler from before comes back after it.

    A shell starts its background jobs with SIGINT ignored; within the block SIGINT counts there, too. In any
    thread but the main one the block does nothing, since Python handles signals in the main thread alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = _Handler()
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield
        if handler.waits:
            raise KeyboardInterrupt
    finally:
        handler.cancel()
        signal.signal(signal.SIGINT, before if before is not None else signal.SIG_DFL)


def uninterrupted(function: Callable[Inputs, Result]) -> Callable[Inputs, Result]:
    """A decorator: within `interruptible`, a Ctrl-C that comes while the function runs is raised when it has
    returned. The second one ends the process at once, as ever."""

    @functools.wraps(function)
    def run(*args: Inputs.args, **kwargs: Inputs.kwargs) -> Result:
        handler = signal.getsignal(signal.SIGINT)
        if not isinstance(handler, _Handler) or threading.current_thread() is not threading.main_thread():
            return function(*args, **kwargs)
        with handler.held():
            return function(*args, **kwargs)

    return run


class _Handler:
    def __init__(self) -> None:
        self._raised = False
        self._held = self._came = False
        self._retry: threading.Timer | None = None

    @property
    def waits(self) -> bool:
        """Whether a Ctrl-C came that has not been raised yet."""
        return self._retry is not None or (self._came and not self._raised)

    def cancel(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Raise a Ctrl-C that comes within the block at its end, unless another error leaves it."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._came:
            self._raised = True
            raise KeyboardInterrupt

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self._raised or self._came:
            os.write(
                sys.stderr.fileno(), b"interrupted\n"
            )  # print may wait for a lock that this thread holds
            os._exit(STATUS)
        if self._held:
            self._came = True
            return
        self.cancel()
        if _in_finalizer(frame):
            self._retry = threading.Timer(RETRY_S, signal.raise_signal, (number,))
            self._retry.daemon = True
            self._retry.start()
            return
        self._raised = True
        raise KeyboardInterrupt


def _in_finalizer(frame: FrameType | None) -> bool:
    """Python drops an exception that leaves a finalizer, and with it a `KeyboardInterrupt`."""
    while frame is not None:
        if frame.f_code.co_name == "__del__" or frame.f_code is weakref.finalize.__call__.__code__:
            return True
        frame = frame.f_back
    return False
