"""Text that is not UTF-8: which encoding would read it, so that a message can name it."""

import codecs
import re

from fyp_jax.data.ingest.items import ItemError
from fyp_jax.data.ingest.remote import SourcePath

_SHOWN = 40  # characters of a text that a message quotes


def decode_utf8(data: bytes, what: str) -> str:
    """Decode UTF-8, with or without a byte order mark. Raises ItemError, with the encoding that would fit."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ItemError(f"{what} is not UTF-8{_other_reading(data)}; save it as UTF-8") from error


def wrong_encoding(file: SourcePath) -> str:
    """Message on a text file that is not UTF-8, with the first line that is not."""
    with file.open("rb") as lines:
        start = lines.read(4096)
        if _guess(start).startswith("utf"):  # its line ends are not single bytes
            return f"{file}: line 1 is not UTF-8{_other_reading(start)}; save the file as UTF-8"
        lines.seek(0)
        for number, line in enumerate(lines, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return f"{file}: line {number} is not UTF-8{_other_reading(line)}; save the file as UTF-8"
    return f"{file}: is not UTF-8; save the file as UTF-8"


def _other_reading(data: bytes) -> str:
    encoding = _guess(data)
    text = data.decode(encoding, errors="replace") if encoding else ""
    first = (text.removeprefix("\ufeff").strip().splitlines() or [""])[0]
    if "\ufffd" in first[:_SHOWN] or not first.isprintable():
        return ""
    quoted = first if len(first) <= _SHOWN else first[:_SHOWN] + "..."
    return f"; {encoding} reads it as '{quoted}'"


def _guess(data: bytes) -> str:
    """Name of an encoding in which data looks like text; empty where there is none."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if data.count(0) > len(data) // 4:
        return "utf-16-le" if data[1::2].count(0) >= data[::2].count(0) else "utf-16-be"
    runs = [len(run) for run in re.findall(rb"[\x80-\xff]+", data)]
    in_pairs = sum(run for run in runs if run % 2 == 0) > 0.7 * sum(runs)
    single = len(runs) > 0.4 * sum(runs)  # Western text has few letters with accents side by side
    order = (
        ("cp1252", "shift_jis") if single else ("gb18030", "cp1251") if in_pairs else ("cp1251", "gb18030")
    )
    for encoding in order:
        try:
            data.rstrip(b"\r\n").decode(encoding)
            return encoding
        except UnicodeDecodeError:
            continue
    return ""
