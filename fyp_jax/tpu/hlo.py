"""What a compiled program does, read off its optimised HLO text: FLOPs, bytes of HBM, messages.

Bodies of loops count as often as they run. Compilers' own cost analyses count them once, and a kernel
(`tpu_custom_call`) as whatever it declares.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from fyp_jax.collectives import KINDS, Collective, collectives
from fyp_jax.tpu.flops import valid_taps

HEADER = re.compile(r"(?P<entry>ENTRY )?%(?P<name>[\w.\-]+) \(.*\) -> .* \{$")
NAMED = re.compile(r"\s+(?P<root>ROOT )?%(?P<name>[\w.\-]+) = (?P<rest>.*)$")
KIND = re.compile(r"(?:^|\s)(?P<kind>[a-z][\w\-]*)\(")
ARRAY = re.compile(r"(?P<type>pred|[a-z]+\d+\w*)\[(?P<shape>[\d,]*)\](?:\{(?P<layout>[^}]*)\})?")
NAMES = re.compile(r"%([\w.\-]+)")
CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%([\w.\-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}|(?:true|false)_computation=%([\w.\-]+)")

UNMOVED = {
    *(
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "after-all",
        "partition-id",
        "replica-id",
    ),
    *("while", "conditional", "call", "opt-barrier"),
}
"""Instructions that move nothing by themselves."""

STARTS, ENDS = 'custom_call_target="AsyncCollectiveStart"', 'custom_call_target="AsyncCollectiveDone"'
"""A TPU sends a message in pieces, beside products: the fusions from its start to its end all name it."""


class Buffer(NamedTuple):
    """An array as a program holds it."""

    shape: tuple[int, ...]
    bytes: int
    """With what a tiled layout adds to fill up its tiles."""
    in_hbm: bool
    """False: in the chip's small memory beside the units, or a scalar's."""


class Instruction(NamedTuple):
    kind: str
    results: tuple[Buffer, ...]
    operands: tuple[str, ...]
    attributes: str
    line: str


class Computation(NamedTuple):
    instructions: dict[str, Instruction]
    root: str


class Kernel(NamedTuple):
    """A custom call that is a program of its own, written in Pallas."""

    name: str
    flops: int | None
    """As its author declares; None where they did not."""
    operands: tuple[tuple[int, ...], ...]
    """Shapes."""
    results: tuple[tuple[int, ...], ...]


class HloStats(NamedTuple):
    """All counts are of one device and one run of the program."""

    flops: int
    """Of matrix products and convolutions, 2 per multiply-add, padding and holes left out; kernels too."""
    hbm_bytes: int
    """Read and written by the instructions that are not fused into others, tiles whole."""
    messages: Counter[Collective]
    """How often each runs."""
    kernels: Counter[Kernel]
    loops: int
    """Loops of which it is not known how often they run; they count once."""


def read(text: str) -> HloStats:
    """Of `compiled.as_text()`."""
    computations, entry = parse(text)
    flops = hbm = loops = 0
    messages: Counter[Collective] = Counter()
    kernels: Counter[Kernel] = Counter()
    for name, times, fused in _runs(computations, entry, 1, False):
        computation = computations[name]
        for instruction in computation.instructions.values():
            kind = instruction.kind
            if kind in ("convolution", "dot"):
                flops += times * _product_flops(instruction, computation)
            elif kind == "custom-call" and '"tpu_custom_call"' in instruction.attributes:
                kernel = _kernel(instruction, computation)
                kernels[kernel] += times
                flops += times * (kernel.flops or 0)
            elif kind == "custom-call" and STARTS in instruction.attributes:
                for operand in instruction.operands:
                    for message in collectives(computation.instructions[operand].line):
                        messages[message] += times
            elif kind == "while" and _trips(instruction, computations) is None:
                loops += 1
            if not fused:
                hbm += times * _moved(instruction, computation, computations)
                for message in collectives(instruction.line):
                    messages[message] += times
    return HloStats(flops, hbm, messages, kernels, loops)


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """All computations of a module by name, and the name of the one where it begins."""
    found: dict[str, Computation] = {}
    entry = name = ""
    instructions: dict[str, Instruction] = {}
    root = ""
    for line in text.splitlines():
        if header := HEADER.match(line):
            name, instructions, root = header["name"], {}, ""
            entry = name if header["entry"] else entry
        elif line.startswith("}") and name:
            found[name], name = Computation(instructions, root), ""
        elif name and (match := NAMED.match(line)):
            instructions[match["name"]] = _instruction(match["rest"], line)
            root = match["name"] if match["root"] else root
    if not entry:
        raise ValueError("no ENTRY: this is not the text of an HLO module")
    return found, entry


def _instruction(rest: str, line: str) -> Instruction:
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    match = KIND.search(rest, end)
    if match is None:
        raise ValueError(f"not an HLO instruction: {line.strip()[:200]}")
    close = _closing(rest, match.end() - 1)
    results = tuple(_buffer(item) for item in ARRAY.finditer(rest[:end]))
    return Instruction(
        match["kind"], results, tuple(NAMES.findall(rest[match.end() : close])), rest[close + 1 :], line
    )


def _closing(text: str, start: int) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for i in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if depth == 0:
            return i
    raise ValueError(f"a parenthesis does not close: {text[:200]}")


def _buffer(item: re.Match[str]) -> Buffer:
    shape = tuple(int(length) for length in item["shape"].split(",") if length)
    bits = re.search(r"\d+", item["type"])
    width = int(bits[0]) / 8 if bits else 1.0
    order, _, tiling = (item["layout"] or "").partition(":")
    padded = list(shape)
    if tile := re.match(r"T\(([\d,]+)\)", tiling):
        sizes = [int(size) for size in tile[1].split(",")]
        axes = [int(axis) for axis in order.split(",") if axis]  # the fastest first
        for axis, size in zip(axes, reversed(sizes), strict=False):
            padded[axis] = -(-padded[axis] // size) * size
    elsewhere = re.search(r"S\((\d+)\)", tiling)
    return Buffer(shape, int(math.prod(padded) * width) if shape else 0, elsewhere is None)


def _runs(
    computations: dict[str, Computation], name: str, times: int, fused: bool
) -> Iterator[tuple[str, int, bool]]:
    """Each computation that `name` leads to: how often it runs, and whether as a part of a fusion."""
    yield name, times, fused
    for instruction in computations[name].instructions.values():
        kind, attributes = instruction.kind, instruction.attributes
        if kind == "while":
            trips = _trips(instruction, computations) or 1
            for called in CALLED.findall(attributes):
                yield from _runs(computations, called, times * trips, fused)
        elif kind == "conditional":
            for several, one in BRANCHES.findall(attributes):
                for called in NAMES.findall(several) or [one]:
                    yield from _runs(computations, called, times, fused)
        elif kind in ("fusion", "call", "async-start"):
            for called in CALLED.findall(attributes):
                yield from _runs(computations, called, times, fused or kind == "fusion")


def _trips(loop: Instruction, computations: dict[str, Computation]) -> int | None:
    """How often a loop runs: as the compiler notes it, else the constant that it counts up to from 0."""
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(known[1])
    condition = re.search(r"condition=%([\w.\-]+)", loop.attributes)
    if condition is None:
        return None
    lines = [item.line for item in computations[condition[1]].instructions.values()]
    found = (re.search(r"= s32\[\].* constant\((\d+)\)", line) for line in lines)
    numbers = {int(match[1]) for match in found if match}
    return numbers.pop() if len(numbers) == 1 else None


def _product_flops(product: Instruction, computation: Computation) -> int:
    left, right = (computation.instructions[name].results[0].shape for name in product.operands[:2])
    out = product.results[0].shape
    if product.kind == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", product.attributes)
        axes = [int(axis) for axis in contracted[1].split(",") if axis] if contracted else []
        return 2 * math.prod(out) * math.prod(left[axis] for axis in axes)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", product.attributes)
    if labels is None:
        raise ValueError(f"a convolution without dim_labels: {product.line.strip()[:200]}")
    of_left, of_right, of_out = labels.groups()
    spatial = len(of_left) - 2
    window = _window(product.attributes, spatial)
    pairs = 1
    for i in range(spatial):
        both = ((left, of_left), (right, of_right), (out, of_out))
        lengths = [shape[names.index(str(i))] for shape, names in both]
        pairs *= valid_taps(*lengths, **window[i])
    features = right[of_right.index("i")] * right[of_right.index("o")]  # inputs of one group, all outputs
    clips = left[of_left.index("b")]
    if groups := re.search(r"batch_group_count=(\d+)", product.attributes):
        clips //= int(groups[1])
    return 2 * pairs * features * clips


def _window(attributes: str, spatial: int) -> list[dict[str, int]]:
    """Of each spatial axis: stride, low padding, dilation of input and of kernel."""
    text = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(item.split("=") for item in text[1].split()) if text else {}

    def values(name: str, default: str) -> list[str]:
        return fields[name].split("x") if name in fields else [default] * spatial

    return [
        {
            "stride": int(values("stride", "1")[i]),
            "pad": int(values("pad", "0_0")[i].split("_")[0]),
            "left_dilation": int(values("lhs_dilate", "1")[i]),
            "right_dilation": int(values("rhs_dilate", "1")[i]),
        }
        for i in range(spatial)
    ]


def _kernel(call: Instruction, computation: Computation) -> Kernel:
    declared = re.search(r'"cost_estimate":(\{[^}]*\})', call.attributes)
    flops = int(json.loads(declared[1]).get("flops", 0)) if declared else 0
    name = re.search(r'op_name="([^"]*)"', call.attributes)
    operands = tuple(
        buffer.shape for name in call.operands for buffer in computation.instructions[name].results[:1]
    )
    return Kernel(
        name[1].rpartition("/")[2] if name else "kernel",
        flops or None,
        operands,
        tuple(buffer.shape for buffer in call.results),
    )


def _moved(instruction: Instruction, computation: Computation, computations: dict[str, Computation]) -> int:
    """Bytes of HBM that an instruction reads and writes, if it stands for itself."""
    kind = instruction.kind
    if kind in UNMOVED or kind.endswith("-done"):
        return 0
    if kind == "copy-start":  # (where to, where from, a flag)
        return sum(buffer.bytes for buffer in instruction.results[:2] if buffer.in_hbm)
    if kind == "slice-start":  # ((where from), where to, a flag)
        whole, part = instruction.results[:2]
        return part.bytes * (whole.in_hbm + part.in_hbm)
    operands = [_held(name, computation) for name in instruction.operands]
    written = list(instruction.results)
    if kind.endswith("-start"):  # lists what it reads, too
        written = written[len(operands) :]
    read_bytes = [sum(buffer.bytes for buffer in buffers if buffer.in_hbm) for buffers in operands]
    write_bytes = sum(buffer.bytes for buffer in written if buffer.in_hbm)
    called = CALLED.search(instruction.attributes) if kind == "fusion" else None
    inner = computations[called[1]] if called else None
    if inner is not None:
        root = inner.instructions[inner.root].attributes
        if STARTS in root:
            return write_bytes  # among its results is what it reads
        if ENDS in root:
            return 0
        read_bytes = [_read_by(inner, i, whole) for i, whole in enumerate(read_bytes)]
        return sum(read_bytes) + _written_by(inner, written)
    if kind in ("dynamic-slice", "slice", "gather"):
        read_bytes[0] = min(read_bytes[0], sum(buffer.bytes for buffer in written))
    if kind == "dynamic-update-slice":  # in place: the rest stays as it is
        update = sum(buffer.bytes for buffer in operands[1])
        return (read_bytes[1] + update) if write_bytes else read_bytes[1]
    return sum(read_bytes) + write_bytes


def _written_by(fused: Computation, results: list[Buffer]) -> int:
    """Bytes that a fusion writes: where it replaces a slice of an array in place, that slice."""
    root = fused.instructions[fused.root]
    names = root.operands if root.kind == "tuple" else (fused.root,)
    total = 0
    for name, buffer in zip(names, results, strict=False):
        item = fused.instructions[name]
        while item.kind == "bitcast":
            item = fused.instructions[item.operands[0]]
        size = buffer.bytes if buffer.in_hbm and item.kind not in (*KINDS, "parameter") else 0
        if item.kind == "dynamic-update-slice":
            size = min(size, sum(buffer.bytes for buffer in _held(item.operands[1], fused)))
        total += size
    return total


def _held(name: str, computation: Computation) -> tuple[Buffer, ...]:
    return computation.instructions[name].results if name in computation.instructions else ()


def _read_by(fused: Computation, number: int, whole: int) -> int:
    """Bytes that a fusion reads of an operand: of one that it only takes slices from, those."""
    mine = [
        name
        for name, item in fused.instructions.items()
        if item.kind == "parameter" and f" parameter({number})" in item.line
    ]
    if not mine or not whole:
        return whole
    read_bytes, seen, names = 0, 0, [mine[0]]
    while names:
        name = names.pop()
        for user_name, user in fused.instructions.items():
            if name not in user.operands:
                continue
            seen += 1
            if user.kind == "bitcast":
                names.append(user_name)
            elif user.kind in ("dynamic-slice", "slice", "gather") and user.operands[0] == name:
                read_bytes += sum(buffer.bytes for buffer in user.results)
            elif user.kind in (*KINDS, "tuple"):  # a message under way, handed on
                pass
            elif user.kind != "dynamic-update-slice" or user.operands[0] != name:
                return whole
    return min(whole, read_bytes) if seen else whole
