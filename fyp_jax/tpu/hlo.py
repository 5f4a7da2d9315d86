"""Parser for the optimised HLO text of a compiled program (`compiled.as_text()`), and its collectives."""

import math
import re
from typing import NamedTuple

COLLECTIVE_KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# `%x = f32[2,3]{1,0} all-reduce(...)`; with several arrays, `(f32[2,3], f32[4]) all-reduce(...)`.
# The `-start` of an asynchronous collective lists operands and results; its `-done` lists the results alone.
COLLECTIVE = re.compile(rf"= (?P<result>.*?) (?P<kind>{'|'.join(COLLECTIVE_KINDS)})(?P<done>-done)?\(")
ARRAY = re.compile(r"(?P<dtype>pred|[a-z]+\d+\w*)\[(?P<shape>[\d,]*)\](?:\{(?P<layout>[^}]*)\})?")
HEADER = re.compile(r"(?P<entry>ENTRY )?%(?P<name>[\w.\-]+) \(.*\) -> .* \{$")
ASSIGNMENT = re.compile(r"\s+(?P<root>ROOT )?%(?P<name>[\w.\-]+) = (?P<rest>.*)$")
KIND = re.compile(r"(?:^|\s)(?P<kind>[a-z][\w\-]*)\(")
NAMES = re.compile(r"%([\w.\-]+)")
CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%([\w.\-]+)")

ASYNC_START = 'custom_call_target="AsyncCollectiveStart"'
ASYNC_DONE = 'custom_call_target="AsyncCollectiveDone"'
"""A TPU runs a collective in pieces, beside products: each fusion from its start to its end names it."""


class Collective(NamedTuple):
    """One collective operation, with the result that each device gets."""

    kind: str
    bytes: int
    shapes: tuple[tuple[int, ...], ...]


class Buffer(NamedTuple):
    """An array in a program."""

    shape: tuple[int, ...]
    bytes: int
    """Size in memory, with the padding of a tiled layout."""
    in_hbm: bool
    """False if the array is in the chip's on-chip memory (VMEM, SMEM)."""


class Instruction(NamedTuple):
    """One instruction: kind, results, the names of its operands, and the rest of its line."""

    kind: str
    results: tuple[Buffer, ...]
    operands: tuple[str, ...]
    attributes: str
    line: str


class Computation(NamedTuple):
    """One computation of a module: its instructions by name, and the name of its root."""

    instructions: dict[str, Instruction]
    root: str


def collectives(text: str) -> list[Collective]:
    """All collectives in an HLO text, in its order. A collective in the body of a loop is listed once."""
    found = []
    for line in text.splitlines():
        if match := COLLECTIVE.search(line):
            arrays = [(item["dtype"], _shape(item["shape"])) for item in ARRAY.finditer(match["result"])]
            size = sum(max(1, _bits(dtype) // 8) * math.prod(shape) for dtype, shape in arrays)
            found.append(Collective(match["kind"], size, tuple(shape for _, shape in arrays)))
    return found


def parse_hlo(text: str) -> tuple[dict[str, Computation], str]:
    """All computations of a module by name, and the name of its entry computation.

    Raises ValueError if the text is not that of an HLO module.
    """
    computations: dict[str, Computation] = {}
    entry = name = root = ""
    instructions: dict[str, Instruction] = {}
    for line in text.splitlines():
        if header := HEADER.match(line):
            name, instructions, root = header["name"], {}, ""
            entry = name if header["entry"] else entry
        elif line.startswith("}") and name:
            computations[name], name = Computation(instructions, root), ""
        elif name and (match := ASSIGNMENT.match(line)):
            instructions[match["name"]] = _instruction(match["rest"], line)
            root = match["name"] if match["root"] else root
    if not entry:
        raise ValueError("not the text of an HLO module: it has no ENTRY computation")
    return computations, entry


def operand_results(name: str, computation: Computation) -> tuple[Buffer, ...]:
    """Results of the instruction `name`; none if the computation has no such instruction."""
    return computation.instructions[name].results if name in computation.instructions else ()


def _instruction(rest: str, line: str) -> Instruction:
    end = _closing_parenthesis(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    match = KIND.search(rest, end)
    if match is None:
        raise ValueError(f"not an HLO instruction: {line.strip()[:200]}")
    close = _closing_parenthesis(rest, match.end() - 1)
    results = tuple(_buffer(item) for item in ARRAY.finditer(rest[:end]))
    operands = tuple(NAMES.findall(rest[match.end() : close]))
    return Instruction(match["kind"], results, operands, rest[close + 1 :], line)


def _closing_parenthesis(text: str, start: int) -> int:
    """Index of the parenthesis that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if depth == 0:
            return i
    raise ValueError(f"unbalanced parentheses in an HLO instruction: {text[:200]}")


def _buffer(array: re.Match[str]) -> Buffer:
    shape = _shape(array["shape"])
    minor_to_major, _, tiling = (array["layout"] or "").partition(":")
    padded = list(shape)
    if tile := re.match(r"T\(([\d,]+)\)", tiling):
        sizes = [int(size) for size in tile[1].split(",")]
        axes = [int(axis) for axis in minor_to_major.split(",") if axis]
        for axis, size in zip(axes, reversed(sizes), strict=False):
            padded[axis] = -(-padded[axis] // size) * size
    size = int(math.prod(padded) * _bits(array["dtype"]) / 8) if shape else 0
    memory_space = re.search(r"S\((\d+)\)", tiling)
    return Buffer(shape, size, memory_space is None)


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(length) for length in text.split(",") if length)


def _bits(dtype: str) -> int:
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else 8
