"""Mistakes that a user can mend (a command prints them as one line, never as a traceback), and text in
messages."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(Exception):
    """Something that the user gave does not work; the message says what was seen and what would fit."""


def reason(error: BaseException, length: int = 200) -> str:
    """The first line of another library's error, or its name where it says nothing."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if len(lines[0]) <= length else lines[0][:length] + "..."


def error_line(error: BaseException) -> str:
    """The message of an error as one printable line."""
    return printable(" ".join(str(error).split()))


@contextmanager
def wrap_write_errors(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Make the folder of `path` and give the path; an OSError inside becomes a UserError with the path."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        yield Path(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or reason(error)})") from error


def printable(text: str) -> str:
    r"""The text with control characters written as escapes (`\x1b`), so that a terminal does not obey
    them."""
    return "".join(x if x.isprintable() or x in "\n\t" else ascii(x)[1:-1] for x in text)
