"""Compiles a program and collects its statistics: memory, FLOPs, HBM traffic and collectives."""

import re
import time
from collections import Counter
from typing import Any, NamedTuple

import jax

from fyp_jax.compilation_cache import bypass_compilation_cache
from fyp_jax.errors import reason
from fyp_jax.tpu.hardware_limits import ATTENTION_KERNEL
from fyp_jax.tpu.hlo_stats import Kernel, hlo_stats
from fyp_jax.tpu.programs import Program

GIB = 2**30

OUT_OF_MEMORY = (
    re.compile(r"Used (?P<used>[\d.]+)(?P<unit>[KMGT]) of (?P<has>[\d.]+)(?P<has_unit>[KMGT]) hbm"),
    re.compile(
        r"\((?P<used>[\d.]+)(?P<unit>[KMGT])\) exceeds available HBM \((?P<has>[\d.]+)(?P<has_unit>[KMGT])\)"
    ),
)
"""Messages of the TPU compiler when a program does not fit in HBM."""

UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

ICI_BYTES_PER_BYTE = {
    "all-reduce": 2.0,
    "all-gather": 1.0,
    "reduce-scatter": 1.0,
    "all-to-all": 1.0,
    "collective-permute": 1.0,
}
"""Bytes that a chip sends per byte of a collective, by the ring algorithms, in the limit of many chips.

An all-reduce is a reduce-scatter and an all-gather, so it sends everything twice.
"""


class OutOfMemory(Exception):  # noqa: N818  (as XLA's RESOURCE_EXHAUSTED: a result of the check, no mistake)
    """The TPU compiler refused a program because it does not fit in the HBM of one chip."""

    def __init__(self, program: str, used_bytes: float, available_bytes: float, message: str):
        super().__init__(message)
        self.program, self.used_bytes, self.available_bytes = program, used_bytes, available_bytes


class ProgramStats(NamedTuple):
    """Statistics of one compiled program on one device; all counts are for one run of it.

    The sizes have the names of XLA's `memory_analysis()`.
    """

    name: str
    runs: int
    """How often the program runs for a training step, or for a clip."""
    argument_size_in_bytes: int
    output_size_in_bytes: int
    alias_size_in_bytes: int
    """Bytes of the outputs that take the place of a donated argument."""
    temp_size_in_bytes: int
    generated_code_size_in_bytes: int
    resident_bytes: int
    """Bytes of parameters that stay in HBM while the program runs and that are not arguments of it."""
    hardware_flops: int
    """FLOPs of the products, convolutions and kernels that the compiled program executes."""
    model_flops: float
    """FLOPs that the model needs, divided by the number of devices; see `fyp_jax.tpu.flops`."""
    padding_flops: int
    """FLOPs (part of the hardware FLOPs) that attention kernels spend on the padding of their heads."""
    padded_flops: dict[int, float]
    """Size of a matrix unit -> the hardware FLOPs with the padding to it."""
    transcendentals: int
    """Numbers of which an exponential, a root or the like is taken."""
    hbm_bytes: int
    """Bytes read from HBM and written to it."""
    collectives: dict[str, tuple[int, int]]
    """Kind of collective -> (count, bytes of all of that kind)."""
    ici_bytes: float
    """Bytes that a chip sends to other chips for its collectives; see `ICI_BYTES_PER_BYTE`."""
    unknown_kernels: int
    """Runs of kernels that declare no FLOPs."""
    unknown_loops: int
    """Loops whose trip count is unknown."""
    compile_seconds: float

    @property
    def peak_hbm_bytes(self) -> int:
        """Bytes of HBM that are in use on one device while the program runs."""
        buffers = self.argument_size_in_bytes + self.output_size_in_bytes - self.alias_size_in_bytes
        programs = self.temp_size_in_bytes + self.generated_code_size_in_bytes
        return buffers + programs + self.resident_bytes


def compile_and_measure(
    program: Program, devices: int, head_dims: dict[int, int]
) -> tuple[ProgramStats, jax.stages.Compiled]:
    """Compile a program for `devices` devices and collect its statistics.

    `head_dims` maps the number of tokens of a frame to the head dimension of the attention over them. Raises
    OutOfMemory if the compiler says that the program does not fit in HBM.
    """
    lowered = program.lower()
    start = time.perf_counter()
    try:
        with bypass_compilation_cache():
            compiled = lowered.compile()
    except RuntimeError as error:
        match = next((found for pattern in OUT_OF_MEMORY if (found := pattern.search(str(error)))), None)
        if match is None:
            raise
        used = float(match["used"]) * UNITS[match["unit"]]
        available = float(match["has"]) * UNITS[match["has_unit"]]
        raise OutOfMemory(program.name, used, available, reason(error)) from error
    compile_seconds = time.perf_counter() - start
    memory: Any = compiled.memory_analysis()
    stats = hlo_stats(compiled.as_text() or "")
    counts, sizes = Counter(), Counter()
    for collective, times in stats.collectives.items():
        counts[collective.kind] += times
        sizes[collective.kind] += times * collective.bytes
    kernels = stats.kernels.items()
    program_stats = ProgramStats(
        name=program.name,
        runs=program.runs,
        argument_size_in_bytes=memory.argument_size_in_bytes,
        output_size_in_bytes=memory.output_size_in_bytes,
        alias_size_in_bytes=memory.alias_size_in_bytes,
        temp_size_in_bytes=memory.temp_size_in_bytes,
        generated_code_size_in_bytes=memory.generated_code_size_in_bytes,
        resident_bytes=program.resident_bytes,
        hardware_flops=stats.flops,
        model_flops=program.model_flops / devices,
        padding_flops=sum(times * head_padding_flops(kernel, head_dims) for kernel, times in kernels),
        padded_flops=stats.padded_flops,
        transcendentals=stats.transcendentals,
        hbm_bytes=stats.hbm_bytes,
        collectives={kind: (counts[kind], sizes[kind]) for kind in counts},
        ici_bytes=sum(ICI_BYTES_PER_BYTE[kind] * size for kind, size in sizes.items()),
        unknown_kernels=sum(times for kernel, times in kernels if kernel.flops is None),
        unknown_loops=stats.unknown_loops,
        compile_seconds=compile_seconds,
    )
    return program_stats, compiled


def head_padding_flops(kernel: Kernel, head_dims: dict[int, int]) -> int:
    """FLOPs of an attention kernel on padding, if its heads are padded to the width of the matrix unit.

    Our own kernels take heads side by side, and declare no padding.
    """
    if ATTENTION_KERNEL.search(kernel.name):
        return 0
    for *_, tokens, padded in (shape for shape in kernel.operand_shapes if len(shape) > 1):
        head_dim = head_dims.get(tokens, padded)
        if padded > head_dim:
            return round((kernel.flops or 0) * (1 - head_dim / padded))
    return 0
