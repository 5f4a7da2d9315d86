"""Statistics of a compiled program, from its optimised HLO text: FLOPs, bytes of HBM traffic, collectives.

The body of a loop counts as often as it runs. XLA's own cost analysis counts it once, and counts a Pallas
kernel (`tpu_custom_call`) as the kernel declares.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from fyp_jax.tpu.flops import valid_taps
from fyp_jax.tpu.hardware_limits import MXU_SIZES, TRANSCENDENTALS, kernel_padding, product_padding
from fyp_jax.tpu.hbm_traffic import hbm_bytes
from fyp_jax.tpu.hlo import ASYNC_START, CALLED, NAMES, Collective, Computation, Instruction, parse_hlo
from fyp_jax.tpu.hlo import collectives as collectives_of

BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}|(?:true|false)_computation=%([\w.\-]+)")


class Kernel(NamedTuple):
    """A Pallas kernel: a custom call that is a program of its own."""

    name: str
    flops: int | None
    """FLOPs that the kernel's cost estimate declares; None without an estimate."""
    operand_shapes: tuple[tuple[int, ...], ...]
    result_shapes: tuple[tuple[int, ...], ...]
    transcendentals: int = 0
    """Transcendentals that the estimate declares."""
    hbm_bytes: int = 0
    """Bytes that the estimate declares."""


class HloStats(NamedTuple):
    """Counts for one device and one run of the program."""

    flops: int
    """FLOPs of products, convolutions and kernels: 2 per multiply-add, without padding and dilation."""
    padded_flops: dict[int, float]
    """Size of a matrix unit -> the same FLOPs with the padding to it (fyp_jax.tpu.hardware_limits)."""
    transcendentals: int
    """Numbers of which an exponential, a root or the like is taken; kernels count as they declare."""
    hbm_bytes: int
    """Bytes that unfused instructions and fusions read from HBM and write to it, in whole tiles.
    A kernel that declares more than its operands and results have counts with what it declares."""
    collectives: Counter[Collective]
    """How often each collective runs."""
    kernels: Counter[Kernel]
    """How often each Pallas kernel runs."""
    unknown_loops: int
    """Loops whose trip count is unknown; their bodies count once."""


def hlo_stats(text: str) -> HloStats:
    """Statistics of the HLO text of a compiled program. Raises ValueError if the text is not HLO."""
    computations, entry = parse_hlo(text)
    flops = traffic = unknown_loops = transcendentals = 0
    padded_flops: dict[int, float] = {size: 0.0 for size in MXU_SIZES}
    collectives: Counter[Collective] = Counter()
    kernels: Counter[Kernel] = Counter()
    for name, times, fused in _executions(computations, entry, 1, False):
        computation = computations[name]
        for instruction in computation.instructions.values():
            kind = instruction.kind
            if kind in ("convolution", "dot"):
                product = times * _product_flops(instruction, computation)
                flops += product
                for size in MXU_SIZES:
                    padded_flops[size] += product * product_padding(instruction, computation, size)
            elif kind in TRANSCENDENTALS:
                transcendentals += times * math.prod(instruction.results[0].shape)
            elif kind == "custom-call" and '"tpu_custom_call"' in instruction.attributes:
                kernel = _kernel(instruction, computation)
                kernels[kernel] += times
                flops += times * (kernel.flops or 0)
                transcendentals += times * kernel.transcendentals
                for size in MXU_SIZES:
                    padded_flops[size] += times * (kernel.flops or 0) * kernel_padding(kernel.name, size)
                moved = hbm_bytes(instruction, computation, computations)
                traffic += times * max(0, kernel.hbm_bytes - moved)  # the rest is added below
            elif kind == "custom-call" and ASYNC_START in instruction.attributes:
                for operand in instruction.operands:
                    for collective in collectives_of(computation.instructions[operand].line):
                        collectives[collective] += times
            elif kind == "while" and _trip_count(instruction, computations) is None:
                unknown_loops += 1
            if not fused:
                traffic += times * hbm_bytes(instruction, computation, computations)
                for collective in collectives_of(instruction.line):
                    collectives[collective] += times
    return HloStats(flops, padded_flops, transcendentals, traffic, collectives, kernels, unknown_loops)


def _executions(
    computations: dict[str, Computation], name: str, times: int, fused: bool
) -> Iterator[tuple[str, int, bool]]:
    """The computation `name` and all that it calls: name, number of runs, whether it is part of a fusion."""
    yield name, times, fused
    for instruction in computations[name].instructions.values():
        kind, attributes = instruction.kind, instruction.attributes
        if kind == "while":
            trip_count = _trip_count(instruction, computations) or 1
            for called in CALLED.findall(attributes):
                yield from _executions(computations, called, times * trip_count, fused)
        elif kind == "conditional":
            for several, one in BRANCHES.findall(attributes):
                for called in NAMES.findall(several) or [one]:
                    yield from _executions(computations, called, times, fused)
        elif kind in ("fusion", "call", "async-start"):
            for called in CALLED.findall(attributes):
                yield from _executions(computations, called, times, fused or kind == "fusion")


def _trip_count(loop: Instruction, computations: dict[str, Computation]) -> int | None:
    """Trip count that XLA notes, or else the constant that the loop counts up to from 0; None if unknown."""
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(known[1])
    condition = re.search(r"condition=%([\w.\-]+)", loop.attributes)
    if condition is None:
        return None
    lines = [item.line for item in computations[condition[1]].instructions.values()]
    constants = (re.search(r"= s32\[\].* constant\((\d+)\)", line) for line in lines)
    values = {int(match[1]) for match in constants if match}
    return values.pop() if len(values) == 1 else None


def _product_flops(product: Instruction, computation: Computation) -> int:
    lhs, rhs = (computation.instructions[name].results[0].shape for name in product.operands[:2])
    out = product.results[0].shape
    if product.kind == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", product.attributes)
        axes = [int(axis) for axis in contracted[1].split(",") if axis] if contracted else []
        return 2 * math.prod(out) * math.prod(lhs[axis] for axis in axes)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", product.attributes)
    if labels is None:
        raise ValueError(f"an HLO convolution without dim_labels: {product.line.strip()[:200]}")
    lhs_labels, rhs_labels, out_labels = labels.groups()
    window = _window(product.attributes, len(lhs_labels) - 2)
    taps = 1
    for i, axis in enumerate(window):
        labelled = ((lhs, lhs_labels), (rhs, rhs_labels), (out, out_labels))
        sizes = [shape[names.index(str(i))] for shape, names in labelled]
        taps *= valid_taps(*sizes, **axis)
    features = rhs[rhs_labels.index("i")] * rhs[rhs_labels.index("o")]  # inputs of one group, all outputs
    batch = lhs[lhs_labels.index("b")]
    if groups := re.search(r"batch_group_count=(\d+)", product.attributes):
        batch //= int(groups[1])
    return 2 * taps * features * batch


def _window(attributes: str, spatial_axes: int) -> list[dict[str, int]]:
    """Options of `valid_taps` for each spatial axis of a convolution."""
    text = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(item.split("=") for item in text[1].split()) if text else {}

    def values(name: str, default: str) -> list[str]:
        return fields[name].split("x") if name in fields else [default] * spatial_axes

    return [
        {
            "stride": int(values("stride", "1")[i]),
            "pad_low": int(values("pad", "0_0")[i].split("_")[0]),
            "lhs_dilation": int(values("lhs_dilate", "1")[i]),
            "rhs_dilation": int(values("rhs_dilate", "1")[i]),
        }
        for i in range(spatial_axes)
    ]


def _kernel(call: Instruction, computation: Computation) -> Kernel:
    estimate = re.search(r'"cost_estimate":(\{[^}]*\})', call.attributes)
    declared = json.loads(estimate[1]) if estimate else {}
    flops, exponentials, moved = (
        int(declared.get(key, 0)) for key in ("flops", "transcendentals", "bytes_accessed")
    )
    # The name that a kernel was given is that of its instruction; JAX's own kernels have one in the metadata.
    named = re.match(r"\s*(?:ROOT )?%(.+?)(?:\.\d+)? = ", call.line)
    metadata = re.search(r'op_name="([^"]*)"', call.attributes)
    name = metadata[1].rpartition("/")[2] if metadata else "pallas_call"
    return Kernel(
        named[1] if named and name == "pallas_call" else name,
        flops or None,
        tuple(item.shape for name in call.operands for item in computation.instructions[name].results[:1]),
        tuple(item.shape for item in call.results),
        exponentials,
        moved,
    )
