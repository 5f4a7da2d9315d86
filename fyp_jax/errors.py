"""Mistakes that a user can mend: shown as one line, never as a traceback."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """Something that the user gave does not work; the message says what was seen and what would fit."""


def reason(error: BaseException, length: int = 200) -> str:
    """The first line of another library's error, or its name where it says nothing."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= length else lines[0][:length] + "..."


def run_cli(main: Callable[[], None]) -> int:
    """Run a command; 0 when it is done, 2 with one line on standard error for a `UserError`."""
    try:
        main()
    except UserError as error:
        message = " ".join(str(error).split())
        print(f"error: {message}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0
