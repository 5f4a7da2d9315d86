"""What a compiled program moves between devices, read off its HLO text."""

import math
import re
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# `%x = f32[2,3]{1,0} all-reduce(...)`; `(f32[2,3], f32[4]) all-reduce(...)` with several arrays in a message.
# The `-start` of an asynchronous one lists what it reads and what it makes; its `-done` the result alone.
INSTRUCTION = re.compile(rf"= (?P<result>.*?) (?P<kind>{'|'.join(KINDS)})(?P<done>-done)?\(")
ARRAY = re.compile(r"(?P<type>pred|[a-z]+\d+\w*)\[(?P<shape>[\d,]*)\]")


class Collective(NamedTuple):
    """One message of a program, as each device has it afterwards."""

    kind: str
    bytes: int
    arrays: tuple[tuple[int, ...], ...]
    """Shapes."""


def collectives(hlo: str) -> list[Collective]:
    """All messages in the text of a compiled program (`compiled.as_text()`); those of a loop count once."""
    found = []
    for line in hlo.splitlines():
        if match := INSTRUCTION.search(line):
            arrays = [(item["type"], _shape(item["shape"])) for item in ARRAY.finditer(match["result"])]
            size = sum(_bytes(kind) * math.prod(shape) for kind, shape in arrays)
            found.append(Collective(match["kind"], size, tuple(shape for _, shape in arrays)))
    return found


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(length) for length in text.split(",") if length)


def _bytes(kind: str) -> int:
    bits = re.search(r"\d+", kind)
    return max(1, int(bits[0]) // 8) if bits else 1
