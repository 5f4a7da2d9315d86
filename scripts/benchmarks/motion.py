"""Compare a training step of the motion stage on this machine with its baseline.

    python scripts/benchmark.py motion [--size sd14] [--frames 4] [--side 32]

The baseline is that of scripts/compile_tpu.py --baseline: attention computes all scores at once, all of the
UNet is trained, and nothing is donated. Both compute in float32, since CPUs have no fast bfloat16. If the
baseline does not fit the free memory, a baseline that donates its state is timed instead, and a note says so.

Two training states of Stable Diffusion's size do not fit at once, so our step runs before and after the
baseline.
"""

import argparse
import statistics
import sys
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fyp_jax.config import load_config
from fyp_jax.tpu.programs import training_programs
from fyp_jax.training.config import TrainConfig

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "sd14" / "stage2_motion.yaml"
GIB = 2**30


class Step(NamedTuple):
    """A compiled training step."""

    compiled: jax.stages.Compiled
    arguments: Any
    """Shapes of its arguments."""
    compile_seconds: float

    @property
    def sizes(self) -> dict[str, int]:
        return program_sizes(self.compiled)

    @property
    def memory(self) -> int:
        """Bytes that it needs in all."""
        return sum(self.sizes.values())


class Timing(NamedTuple):
    """Times of a step."""

    seconds: list[float]
    loss: float
    """Loss of the first step, from random weights."""


def motion_config(size: str, frames: int, side: int) -> TrainConfig:
    """The motion stage on one clip of `frames` frames of `side` x `side` latents, in float32."""
    sides = (f"data.height={8 * side}", f"data.width={8 * side}", f"data.num_frames={frames}")
    options = ("dtype=float32", "frozen_dtype=float32", "remat=none", "init_checkpoint=null", *sides)
    return load_config(TrainConfig, CONFIG, [f"pretrained={size}", "data.batch_size=1", *options])


def program_sizes(compiled: jax.stages.Compiled) -> dict[str, int]:
    """Bytes of a program's arguments, of outputs that alias no argument, and of temporaries."""
    memory: Any = compiled.memory_analysis()
    return {
        "arguments": memory.argument_size_in_bytes,
        "outputs, not aliased": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
    }


def compile_step(
    config: TrainConfig, compiler_options: Mapping[str, str | bool] | None = None, **options: bool
) -> Step:
    (program,) = training_programs(config, jax.devices()[:1], **options).programs
    lowered, start = program.lower(), time.perf_counter()
    compiled = lowered.compile(dict(compiler_options or {}))
    return Step(compiled, lowered.args_info[0], time.perf_counter() - start)


def initial_value(path: Any, info: Any) -> np.ndarray:
    """Random numbers that depend on a parameter's name alone; optimizer state and counters are 0."""
    if "opt_state" in jax.tree_util.keystr(path) or not np.issubdtype(info.dtype, np.floating):
        return np.zeros(info.shape, info.dtype)
    name = str(getattr(path[-1], "key", path[-1]))
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return 0.02 * rng.standard_normal(info.shape, np.float32)


def arguments(step: Step) -> Any:
    """Values for the arguments of a step. Only one of them is in memory twice at a time."""
    return jax.tree_util.tree_map_with_path(
        lambda path, info: jnp.asarray(initial_value(path, info)), step.arguments
    )


def run(step: Step, runs: int) -> Timing:
    """Time `runs` consecutive steps, after a first one that is not counted."""
    state, *rest = arguments(step)
    seconds, losses = [], []
    for _ in range(1 + runs):
        start = time.perf_counter()
        state, metrics = jax.block_until_ready(step.compiled(state, *rest))
        seconds.append(time.perf_counter() - start)
        losses.append(float(metrics["loss"]))
    return Timing(seconds[1:], losses[0])


def free_memory() -> int:
    """Bytes of memory that are available to this process."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 1024
    return sys.maxsize


def step_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser with the options that say which motion step is measured."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="sd14", choices=["sd14", "mini"])
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--side", type=int, default=32, help="height and width of the latents")
    return parser


def main() -> None:
    parser = step_parser(__doc__)
    parser.add_argument("--runs", type=int, default=3, help="timed steps before and after the baseline")
    args = parser.parse_args()
    config = motion_config(args.size, args.frames, args.side)
    ours = compile_step(config)
    first = run(ours, args.runs)
    baseline = compile_step(config, baseline=True)
    sizes, free, note = {"ours": ours.sizes, "baseline": baseline.sizes}, free_memory(), ""
    if baseline.memory > free:
        note = (
            f"timed with its state donated: without, it needs {baseline.memory / GIB:.1f} GiB, and "
            f"{free / GIB:.1f} are free"
        )
        baseline = compile_step(config, baseline=True, donate=True)
    other = None
    if baseline.memory > free:
        note = (
            f"not timed: even with its state donated, it needs {baseline.memory / GIB:.1f} GiB, and "
            f"{free / GIB:.1f} are free"
        )
    else:
        other = run(baseline, args.runs)
    again = run(ours, args.runs)

    print(f"{args.size}, 1 clip of {args.frames} frames of {args.side}x{args.side} latents, float32")
    print(f"{'':24}{'ours':>10}{'baseline':>10}{'ratio':>8}")
    both = {name: tuple(sizes[step][name] / GIB for step in sizes) for name in sizes["ours"]}
    rows = {"memory, GiB": tuple(sum(parts.values()) / GIB for parts in sizes.values())}
    rows |= {f"  {name}": values for name, values in both.items()}
    rows["compile time, s"] = (ours.compile_seconds, baseline.compile_seconds)
    if other is not None:
        rows["time of a step, s"] = (
            statistics.median(first.seconds + again.seconds),
            statistics.median(other.seconds),
        )
    for name, (mine, theirs) in rows.items():
        ratio = f"{theirs / mine:8.2f}" if mine > 0.005 else ""
        print(f"{name:24}{mine:10.2f}{theirs:10.2f}{ratio}")
    if other is not None:
        low, high = min(other.seconds) / max(again.seconds), max(other.seconds) / min(first.seconds)
        print(f"{'  range of the ratio':44}{low:8.2f} {high:.2f}")
        print(f"loss of the first step: {first.loss:.6f}, {other.loss:.6f}")
    if note:
        print(f"the baseline is {note}")


if __name__ == "__main__":
    main()
