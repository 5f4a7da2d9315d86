"""Files of many prompts: text with a prompt a line, CSV, or JSON lines. Each prompt is the config of a clip.

A file is read whole before a clip is made, so that a mistake in its last line is told at once.
"""

import csv
import dataclasses
import difflib
import io
import json
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fyp_jax.data.ingest.encoding import wrong_encoding
from fyp_jax.errors import UserError, reason
from fyp_jax.pipeline.config import SampleConfig
from fyp_jax.pipeline.params import SamplingParams
from fyp_jax.pose.config import PoseConfig

SUFFIXES = (".txt", ".csv", ".jsonl")
POSE_FIELDS = {"pose": "path", "pose_stride": "stride", "pose_start": "start", "pose_size": "size"}
"""Fields of a prompt file that say which pose, and their names in PoseConfig."""
SAMPLING_TYPES = {field.name: field.type for field in dataclasses.fields(SamplingParams)}
POSE_TYPES = {field.name: field.type for field in dataclasses.fields(PoseConfig)}
FIELD_TYPES: dict[str, Any] = {
    "prompt": str,
    **SAMPLING_TYPES,
    **{name: POSE_TYPES[field] for name, field in POSE_FIELDS.items()},
}
"""The fields of a prompt file, with their types."""
NAMES_OF_TYPES = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


class PromptLine(NamedTuple):
    """A clip that a prompt file asks for."""

    number: int
    """Its number among the prompts of the file, from 0."""
    where: str
    """FILE:LINE, for messages."""
    config: SampleConfig
    """The config of this clip alone."""


def read_prompts(file: Path, config: SampleConfig) -> list[PromptLine]:
    """The clips of a prompt file: what a line does not say is as in `config`.

    A pose that is a file or folder beside the prompt file is taken from there; other poses are what `--pose`
    takes. Raises UserError with file and line: a file of another kind or encoding, an unknown field, a value
    of another type or out of range, a missing prompt; and for a file without a prompt.
    """
    if file.suffix.lower() not in SUFFIXES:
        raise UserError(f"{file}: a file of prompts is named {', '.join(SUFFIXES)}")
    rows = {".txt": _text_rows, ".csv": _csv_rows, ".jsonl": _json_rows}[file.suffix.lower()]
    lines = []
    for line, values in rows(file, _read_text(file)):
        where = f"{file}:{line}"
        try:
            lines.append(PromptLine(len(lines), where, _config_of(values, file.parent, config)))
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
    if not lines:
        raise UserError(f"{file}: holds no prompt")
    return lines


def _read_text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or reason(error)})") from error
    except UnicodeDecodeError as error:
        raise UserError(wrong_encoding(file)) from error


def _text_rows(file: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, prompt in _lines(text):
        yield line, {"prompt": prompt}


def _json_rows(file: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, content in _lines(text):
        try:
            values = json.loads(content, object_pairs_hook=_unique)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{file}:{line}: is not JSON ({reason(error)})") from error
        if not isinstance(values, dict):
            raise UserError(f'{file}:{line}: is no JSON object, such as {{"prompt": "A robot", "seed": 1}}')
        _check_names(f"{file}:{line}", values)
        yield line, {name: _of_type(f"{file}:{line}", name, value) for name, value in values.items()}


def _csv_rows(file: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader, header = csv.reader(io.StringIO(text, newline=""), strict=True), None
    try:
        for row in reader:
            where = f"{file}:{reader.line_num}"
            if not any(cell.strip() for cell in row):
                continue
            if header is None:
                header = [name.strip() for name in row]
                _check_names(where, _unique_names(where, header))
                continue
            if len(row) != len(header):
                raise UserError(
                    f"{where}: has {len(row)} cells, and the header {len(header)}; a text with a comma is in "
                    'quotes: "A robot, on the beach"'
                )
            cells = dict(zip(header, (cell.strip() for cell in row), strict=True))
            # An empty cell says nothing: the value is the config's.
            yield (
                reader.line_num,
                {name: _parse_cell(where, name, cell) for name, cell in cells.items() if cell},
            )
    except csv.Error as error:
        raise UserError(f"{file}:{reader.line_num}: is not CSV ({reason(error)})") from error


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line.strip()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a field is there twice")
    return dict(pairs)


def _unique_names(where: str, header: list[str]) -> list[str]:
    if twice := [name for name in header if header.count(name) > 1]:
        raise UserError(f"{where}: the column {twice[0]!r} is there twice")
    return header


def _check_names(where: str, names: Any) -> None:
    for name in names:
        if name not in FIELD_TYPES:
            near = difflib.get_close_matches(name, FIELD_TYPES, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the fields are {', '.join(FIELD_TYPES)}"
            raise UserError(f"{where}: unknown field {name!r}; {hint}")
    if "prompt" not in names:
        raise UserError(f"{where}: has no field prompt")


def _types_of(name: str) -> tuple[type, bool]:
    """The type of a field, and whether it may be null."""
    kind = FIELD_TYPES[name]
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    return kinds[0], type(None) in kinds


def _of_type(where: str, name: str, value: Any) -> Any:
    """A value of JSON. Raises UserError for one of another type."""
    kind, may_be_null = _types_of(name)
    if value is None and may_be_null:
        return None
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:  # true is no number, though Python counts with it
        raise UserError(f"{where}: {name} is {json.dumps(value)[:80]}, not {NAMES_OF_TYPES[kind]}")
    return value


def _parse_cell(where: str, name: str, cell: str) -> Any:
    """The value of a cell of CSV. Raises UserError for one of another type."""
    kind, may_be_null = _types_of(name)
    if cell == "null" and may_be_null:
        return None
    if kind is bool:
        value = {"true": True, "false": False}.get(cell.lower())
    else:
        try:
            value = kind(cell)
        except ValueError:
            value = None
    if value is None:
        raise UserError(f"{where}: {name} is {cell[:80]!r}, not {NAMES_OF_TYPES[kind]}")
    return value


def _config_of(values: Mapping[str, Any], folder: Path, config: SampleConfig) -> SampleConfig:
    """The config of a clip. Raises UserError for values that make no clip."""
    pose = {field: values[name] for name, field in POSE_FIELDS.items() if name in values}
    if isinstance(pose.get("path"), str) and (beside := folder / pose["path"]).exists():
        pose["path"] = str(beside)
    sampling = {name: value for name, value in values.items() if name in SAMPLING_TYPES}
    clip = dataclasses.replace(
        config,
        prompt=[values.get("prompt", "")],
        pose=dataclasses.replace(config.pose, **pose),
        **sampling,
    )
    clip.check()
    return clip
