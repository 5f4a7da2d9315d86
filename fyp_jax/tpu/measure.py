"""Compiles a program and reads off it memory, FLOPs, bytes and messages; or says that it does not fit."""

import re
import time
from collections import Counter
from typing import Any, NamedTuple

import jax

from fyp_jax.compilation_cache import bypass_compilation_cache
from fyp_jax.errors import reason
from fyp_jax.tpu import hlo
from fyp_jax.tpu.programs import Program

GIB = 2**30

OVER = (
    re.compile(r"Used (?P<used>[\d.]+)(?P<unit>[KMGT]) of (?P<has>[\d.]+)(?P<has_unit>[KMGT]) hbm"),
    re.compile(
        r"\((?P<used>[\d.]+)(?P<unit>[KMGT])\) exceeds available HBM \((?P<has>[\d.]+)(?P<has_unit>[KMGT])\)"
    ),
)
"""How the TPU compiler says that a program does not fit."""

UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class OverMemory(Exception):  # noqa: N818  (names the fact)
    """The compiler refuses a program, since it does not fit the chip."""

    def __init__(self, program: str, used: float, has: float, said: str):
        super().__init__(said)
        self.program, self.used, self.has = program, used, has


class ProgramStats(NamedTuple):
    """One program, on one device. Sizes in bytes, counts for one run of it."""

    name: str
    runs: int
    arguments: int
    outputs: int
    aliased: int
    """Of the outputs, what stands in the place of a donated argument."""
    temporaries: int
    code: int
    beside: int
    """Held while it runs, and no argument of it."""
    flops: int
    needed: float
    """FLOPs that the maths needs, a device's share."""
    padding: int
    """FLOPs of kernels on what fills heads up to the width of the matrix unit."""
    hbm_bytes: int
    messages: dict[str, tuple[int, int]]
    """By kind: how many, and their bytes."""
    sent: float
    """Bytes that a chip sends for its messages, by the usual algorithms on a ring."""
    unknown_kernels: int
    """Kernels that declare no FLOPs."""
    unknown_loops: int
    seconds: float
    """Of compiling."""

    @property
    def memory(self) -> int:
        """Bytes of HBM at its peak."""
        held = self.arguments + self.outputs - self.aliased
        return held + self.temporaries + self.code + self.beside


SENDS = {
    "all-reduce": 2.0,
    "all-gather": 1.0,
    "reduce-scatter": 1.0,
    "all-to-all": 1.0,
    "collective-permute": 1.0,
}
"""Times its bytes that a message makes a chip send, for many chips: an all-reduce passes all of it twice."""


def measure(
    program: Program, devices: int, head_widths: dict[int, int]
) -> tuple[ProgramStats, jax.stages.Compiled]:
    """Compile and read. `head_widths` maps tokens of a frame to the width of an attention head there.

    Raises OverMemory where the compiler says that it does not fit.
    """
    lowered = program.lower()
    began = time.perf_counter()
    try:
        with bypass_compilation_cache():
            compiled = lowered.compile()
    except RuntimeError as error:
        over = next((found for form in OVER if (found := form.search(str(error)))), None)
        if over is None:
            raise
        used = float(over["used"]) * UNITS[over["unit"]]
        has = float(over["has"]) * UNITS[over["has_unit"]]
        raise OverMemory(program.name, used, has, reason(error)) from error
    seconds = time.perf_counter() - began
    memory: Any = compiled.memory_analysis()
    found = hlo.read(compiled.as_text() or "")
    counts, sizes = Counter(), Counter()
    for message, times in found.messages.items():
        counts[message.kind] += times
        sizes[message.kind] += times * message.bytes
    measured = ProgramStats(
        name=program.name,
        runs=program.runs,
        arguments=memory.argument_size_in_bytes,
        outputs=memory.output_size_in_bytes,
        aliased=memory.alias_size_in_bytes,
        temporaries=memory.temp_size_in_bytes,
        code=memory.generated_code_size_in_bytes,
        beside=program.beside,
        flops=found.flops,
        needed=program.needed / devices,
        padding=sum(times * _padding(kernel, head_widths) for kernel, times in found.kernels.items()),
        hbm_bytes=found.hbm_bytes,
        messages={kind: (counts[kind], sizes[kind]) for kind in counts},
        sent=sum(SENDS[kind] * size for kind, size in sizes.items()),
        unknown_kernels=sum(times for kernel, times in found.kernels.items() if kernel.flops is None),
        unknown_loops=found.loops,
        seconds=seconds,
    )
    return measured, compiled


def _padding(kernel: hlo.Kernel, head_widths: dict[int, int]) -> int:
    """FLOPs of an attention kernel whose heads are wider than the model's: the share of the filling."""
    for *_, tokens, padded in (shape for shape in kernel.operands if len(shape) > 1):
        width = head_widths.get(tokens, padded)
        if padded > width:
            return round((kernel.flops or 0) * (1 - width / padded))
    return 0
