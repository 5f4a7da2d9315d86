"""Rows of a metadata file, CSV or JSON lines."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fyp_jax.errors import UserError, reason

Row = Mapping[str, Any]
"""Values by column."""

csv.field_size_limit(2**30)  # keypoints of many people make a long field


def read_rows(file: Path) -> Iterator[tuple[int, Row]]:
    """Yield each row with the number of the line in which it ends.

    Raises UserError, with the line, for a file that is not valid CSV or JSON lines.
    """
    line = 0
    try:
        with open(file, encoding="utf-8-sig", newline="") as text:
            if file.suffix.lower() == ".csv":
                reader = csv.reader(text, strict=True)
                columns = [column.strip() for column in next(reader, [])]
                for fields in filter(None, reader):
                    line = reader.line_num
                    if len(fields) != len(columns):
                        raise UserError(
                            f"{file}: line {line} has {len(fields)} fields for {len(columns)} columns, "
                            f"{', '.join(columns)}; put a text that contains a comma in quotes"
                        )
                    yield line, dict(zip(columns, fields, strict=True))
            else:
                for line, words in enumerate(text, 1):
                    row = json.loads(words) if words.strip() else None
                    if row is not None and not isinstance(row, dict):
                        raise UserError(
                            f'{file}: line {line} is not a JSON object such as {{"file_name": "a.mp4"}}'
                        )
                    if row is not None:
                        yield line, row
    except (csv.Error, OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        form = "CSV" if file.suffix.lower() == ".csv" else "JSON lines"
        raise UserError(f"{file}: cannot be read as {form} from line {line} on ({reason(error)})") from error


def require_columns(columns: Sequence[str], rows: Iterator[tuple[int, Row]], file: Path) -> Iterator[Row]:
    """Yield the rows; raise UserError at one that lacks a column."""
    for line, row in rows:
        missing = [column for column in columns if column not in row]
        if missing:
            raise UserError(
                f"{file}: line {line} has no column {', '.join(missing)}; its columns: {', '.join(row)}"
            )
        yield row
