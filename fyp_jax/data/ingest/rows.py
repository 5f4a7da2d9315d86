"""Rows of a metadata file, CSV or JSON lines."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fyp_jax.data.ingest.encoding import wrong_encoding
from fyp_jax.data.ingest.remote import SourcePath
from fyp_jax.errors import UserError, reason
from fyp_jax.trees import list_names

Row = Mapping[str, Any]
"""Values by column."""

_DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "bars"}
_KNOWN_COLUMNS = frozenset(("file_name", "video", "image", "path", "file", "clip_id"))

csv.field_size_limit(2**30)  # keypoints of many people make a long field


def read_rows(file: SourcePath) -> Iterator[tuple[int, Row]]:
    """Yield each row with the number of the line in which it starts.

    Raises UserError, with the line, for a file that is not UTF-8, or not valid CSV or JSON lines.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            yield from (_csv_rows if file.suffix.lower() == ".csv" else _json_rows)(file, text)
    except UnicodeDecodeError as error:
        raise UserError(wrong_encoding(file)) from error
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({reason(error)})") from error


def _csv_rows(file: SourcePath, text: io.TextIOBase) -> Iterator[tuple[int, Row]]:
    reader = csv.reader(text, strict=True)
    columns: list[str] = []
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if not columns:  # quotes do not fit together where another delimiter stands between them
                text.seek(0)
                _header(file, line, next((words for words in text if words.strip()), "").split(","))
            hint = "; a quote is opened there and not closed" if "end of data" in str(error) else ""
            raise UserError(
                f"{file}: cannot be read as CSV from line {line} on ({reason(error)}{hint})"
            ) from error
        if not columns:
            columns = _header(file, line, fields)
        elif fields:
            if len(fields) != len(columns):
                raise UserError(_wrong_length(file, line, fields, columns))
            yield line, dict(zip(columns, fields, strict=True))


def _header(file: SourcePath, line: int, fields: list[str]) -> list[str]:
    columns = [column.strip() for column in fields]
    if any("\0" in column for column in columns):  # UTF-16 without a byte order mark
        raise UserError(wrong_encoding(file))
    for delimiter, name in _DELIMITERS.items():
        cells = {cell.strip(' "\r\n') for column in columns for cell in column.split(delimiter)}
        if cells & _KNOWN_COLUMNS and not _KNOWN_COLUMNS & set(columns):
            raise UserError(
                f"{file}: line {line} is separated by {name}; save the file with commas, and put a text that "
                "contains a comma in quotes"
            )
    return columns


def _wrong_length(file: SourcePath, line: int, fields: list[str], columns: list[str]) -> str:
    for delimiter, name in _DELIMITERS.items():
        cells = ",".join(fields).split(delimiter)
        if len(cells) == len(columns) > 1 and "," not in cells[0]:
            return f"{file}: line {line} is separated by {name}, not by commas as line 1; use commas in all"
    return (
        f"{file}: line {line} has {len(fields)} fields for {len(columns)} columns, {list_names(columns)}; "
        "put a text that contains a comma in quotes"
    )


def _json_rows(file: SourcePath, text: io.TextIOBase) -> Iterator[tuple[int, Row]]:
    for line, words in enumerate(text, 1):
        try:
            row = json.loads(words) if words.strip() else None
        except (ValueError, RecursionError) as error:
            other = file.suffix.lower() not in (".jsonl", ".json")
            raise UserError(
                f"{file}: cannot be read as JSON lines from line {line} on ({reason(error)})"
                + ("; a file of comma-separated values must be called .csv" if other else "")
            ) from error
        if row is not None and not isinstance(row, dict):
            raise UserError(f'{file}: line {line} is not a JSON object such as {{"file_name": "a.mp4"}}')
        if row is not None:
            yield line, row


def require_columns(
    columns: Sequence[str], rows: Iterator[tuple[int, Row]], file: SourcePath
) -> Iterator[Row]:
    """Yield the rows; raise UserError at one that lacks a column."""
    for line, row in rows:
        missing = [column for column in columns if column not in row]
        if missing:
            raise UserError(
                f"{file}: line {line} has no column {', '.join(missing)}; "
                f"its columns: {list_names(list(row))}"
            )
        yield row
