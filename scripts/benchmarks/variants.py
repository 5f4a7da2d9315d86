"""Compare variants of a training step of the motion stage on this machine, by time and memory.

    python scripts/benchmark.py variants [--frames 4] [--side 32] [--variants VARIANT ...]

A variant is one word: config fields and options of XLA's CPU backend (their names begin with `xla_`), with
commas between. The step without any runs first and last. Steps compute in float32 with random weights, and
the losses of all variants are printed, so that one that computes something else shows.

Memory of the program is what XLA says of it. The peak is that of the process while the steps run, with the
weights, and without the compilation.
"""

import gc
import statistics
from pathlib import Path
from typing import NamedTuple

import jax

from benchmarks.motion import GIB, compile_step, motion_config, run, step_parser
from fyp_jax.config import override_config
from fyp_jax.freed_memory import give_back

VARIANTS = (
    "attention_implementation=xla",
    "remat=transformers",
    "remat=all",
    "xla_cpu_enable_fast_math=true",
    "xla_cpu_use_onednn=true",
)
PLAIN = "as configured"


class Row(NamedTuple):
    """What one variant takes. It holds no program, whose code would count in the peaks of the next."""

    name: str
    seconds: list[float]
    loss: float
    compile_seconds: float
    program_bytes: int
    temporary_bytes: int
    peak_bytes: int


def measure(name: str, size: str, frames: int, side: int, runs: int) -> Row:
    """Compile the variant `name`, and time `runs` steps after a first one."""
    words = [] if name == PLAIN else name.split(",")
    given = dict(word.split("=", 1) for word in words if word.startswith("xla_"))
    options = {name: {"true": True, "false": False}.get(value, value) for name, value in given.items()}
    config = override_config(
        motion_config(size, frames, side), [word for word in words if not word.startswith("xla_")]
    )
    step = compile_step(config, compiler_options=options)
    gc.collect()
    give_back()  # what the compilation has freed
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    timing = run(step, runs)
    sizes = step.memory, step.sizes["temporaries"]
    row = Row(name, timing.seconds, timing.loss, step.compile_seconds, *sizes, peak_bytes())
    jax.clear_caches()
    return row


def peak_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc tells no peak of memory")


def main() -> None:
    parser = step_parser(__doc__)
    parser.add_argument("--runs", type=int, default=2, help="timed steps of each variant")
    parser.add_argument("--variants", nargs="+", default=VARIANTS, metavar="VARIANT")
    args = parser.parse_args()
    names = [PLAIN, *args.variants, PLAIN]
    rows = []
    for name in names:
        rows.append(measure(name, args.size, args.frames, args.side, args.runs))
        print(describe(rows[-1]), flush=True)
    plain = statistics.median(rows[0].seconds + rows[-1].seconds)
    print(f"\n{'ratio of time':24}")
    for row in rows:
        print(f"{statistics.median(row.seconds) / plain:8.2f}  {row.name}")


def describe(row: Row) -> str:
    return (
        f"{row.name}: {statistics.median(row.seconds):.2f} s a step ({min(row.seconds):.2f} to "
        f"{max(row.seconds):.2f}), program {row.program_bytes / GIB:.2f} GiB (temporaries "
        f"{row.temporary_bytes / GIB:.2f}), peak {row.peak_bytes / GIB:.2f} GiB, compiled in "
        f"{row.compile_seconds:.0f} s, loss {row.loss:.6f}"
    )
