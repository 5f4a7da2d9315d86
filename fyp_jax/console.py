"""What all commands share: exit status, log format, platform, and text from outside that reaches the
terminal."""

import inspect
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import NoReturn

from fyp_jax.errors import UserError, error_line, printable
from fyp_jax.interrupts import STATUS, interruptible
from fyp_jax.platforms import choose_platform


def run_console(main: Callable[[], None]) -> NoReturn:
    """Run a command and end the process with its status (`run_cli`)."""
    choose_platform()
    handler = logging.StreamHandler()
    handler.setFormatter(_PrintableFormatter("%(levelname)s: %(message)s"))
    logging.basicConfig(handlers=[handler])
    _leave_out_lost_errors_of_orbax()
    status = 1
    try:
        status = run_cli(main)
    except Exception:
        traceback.print_exc()
    if status and any(x is not threading.main_thread() and not x.daemon for x in threading.enumerate()):
        end_at_once(status)  # after an error, threads of a library may wait for ever
    sys.exit(status)


def end_at_once(status: int) -> NoReturn:
    """End the process, whatever threads are left."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def run_cli(main: Callable[[], None]) -> int:
    """Run a command: 0 when it is done; 2 with one line on standard error for a `UserError`; 130 for
    Ctrl-C, and a second Ctrl-C ends the process at once (`interrupts`)."""
    try:
        with interruptible():
            main()
    except UserError as error:
        print(f"error: {error_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return STATUS
    return 0


def _leave_out_lost_errors_of_orbax() -> None:
    """Say nothing of errors in what Orbax started and nobody waits for.

    Orbax stops at the first array that it cannot read or write. Each of its other reads and writes then fails
    where nobody sees it, or on an event loop that is closed: that would be hundreds of tracebacks around the
    one line that says what happened. A pipe that nobody empties would stop the command.
    """
    sys.unraisablehook = _without_orbax
    logging.getLogger("asyncio").addFilter(_is_not_lost_by_orbax)


def _without_orbax(unraisable: "sys.UnraisableHookArgs") -> None:
    error, coroutine = unraisable.exc_value, unraisable.object
    is_of_orbax = inspect.iscoroutine(coroutine) and "orbax" in coroutine.cr_code.co_filename
    is_of_closed_loop = isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
    if not (is_of_orbax or is_of_closed_loop):
        sys.__unraisablehook__(unraisable)


def _is_not_lost_by_orbax(record: logging.LogRecord) -> bool:
    message = record.getMessage()
    is_of_orbax = "orbax" in message or "tensorstore" in message  # which reads and writes for it
    return not ("exception was never retrieved" in message and is_of_orbax)


class _PrintableFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))
