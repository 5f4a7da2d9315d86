"""A step of the motion stage on this machine, beside the same step written the plain way.

    python scripts/benchmark.py motion [--size sd14] [--frames 4] [--side 32]

The plain way is that of scripts/compile_tpu.py --plain: all scores of an attention at once, all of the UNet
trained, nothing donated. Both compute in float32, as processors have no fast bfloat16. Where the plain step
does not fit the memory that is free, one that donates its state is timed in its place, and the table says so.

Two states of Stable Diffusion's size do not fit side by side: ours runs before and after the plain one.
"""

import argparse
import statistics
import sys
import time
import zlib
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
    """One way of writing it, compiled."""

    compiled: jax.stages.Compiled
    arguments: Any
    """Their shapes."""
    compiling: float
    """Seconds."""

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes, by what they are for."""
        memory: Any = self.compiled.memory_analysis()
        return {
            "arguments": memory.argument_size_in_bytes,
            "outputs beside them": memory.output_size_in_bytes - memory.alias_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
        }

    @property
    def memory(self) -> int:
        return sum(self.sizes.values())


class Timed(NamedTuple):
    seconds: list[float]
    loss: float
    """Of the first step, from drawn weights."""


def compile_step(config: TrainConfig, **how: bool) -> Step:
    (program,) = training_programs(config, jax.devices()[:1], **how).programs
    lowered, began = program.lower(), time.perf_counter()
    compiled = lowered.compile()
    return Step(compiled, lowered.args_info[0], time.perf_counter() - began)


def drawn(path: Any, info: Any) -> np.ndarray:
    """The same numbers for the same parameter, in whatever part of a state; moments and counters are 0."""
    if "opt_state" in jax.tree_util.keystr(path) or not np.issubdtype(info.dtype, np.floating):
        return np.zeros(info.shape, info.dtype)
    name = str(getattr(path[-1], "key", path[-1]))
    of_this = np.random.default_rng(zlib.crc32(name.encode()))
    return 0.02 * of_this.standard_normal(info.shape, np.float32)


def run(step: Step, runs: int) -> Timed:
    """A first step that is not counted, and `runs` more, each from the state that the one before left."""
    state, *rest = jax.tree.map(jnp.asarray, jax.tree_util.tree_map_with_path(drawn, step.arguments))
    took, losses = [], []
    for _ in range(1 + runs):
        began = time.perf_counter()
        state, metrics = jax.block_until_ready(step.compiled(state, *rest))
        took.append(time.perf_counter() - began)
        losses.append(float(metrics["loss"]))
    return Timed(took[1:], losses[0])


def free_memory() -> int:
    """Bytes that this process may still have."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable"):
            return int(line.split()[1]) * 1024
    return sys.maxsize


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="sd14", choices=["sd14", "mini"])
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--side", type=int, default=32, help="height and width of the latents")
    parser.add_argument("--runs", type=int, default=3, help="steps before and after the plain ones")
    args = parser.parse_args()
    sides = (f"data.height={8 * args.side}", f"data.width={8 * args.side}", f"data.num_frames={args.frames}")
    names = ("dtype=float32", "frozen_dtype=float32", "remat=none", "data.batch_size=1", "init=null")
    config = load_config(TrainConfig, CONFIG, [f"pretrained={args.size}", *sides, *names])

    ours = compile_step(config)
    first = run(ours, args.runs)
    plain = compile_step(config, plain=True)
    sizes, free, note = {"ours": ours.sizes, "plain": plain.sizes}, free_memory(), ""
    if plain.memory > free:
        note = f"timed with its state donated: {plain.memory / GIB:.1f} GiB do not fit in {free / GIB:.1f}"
        plain = compile_step(config, plain=True, donate=True)
    other = None
    if plain.memory > free:
        note = (
            f"not timed: even with its state donated {plain.memory / GIB:.1f} GiB, {free / GIB:.1f} are free"
        )
    else:
        other = run(plain, args.runs)
    again = run(ours, args.runs)

    print(f"{args.size}, 1 clip of {args.frames} frames of {args.side}x{args.side} latents, float32")
    print(f"{'':24}{'ours':>10}{'plain':>10}{'ratio':>8}")
    both = {name: tuple(sizes[way][name] / GIB for way in sizes) for name in sizes["ours"]}
    rows = {"memory, GiB": tuple(sum(of.values()) / GIB for of in sizes.values())}
    rows |= {f"  {name}": values for name, values in both.items()}
    rows["compiled in, s"] = (ours.compiling, plain.compiling)
    if other is not None:
        rows["a step, s"] = (
            statistics.median(first.seconds + again.seconds),
            statistics.median(other.seconds),
        )
    for name, (mine, theirs) in rows.items():
        ratio = f"{theirs / mine:8.2f}" if mine > 0.005 else ""
        print(f"{name:24}{mine:10.2f}{theirs:10.2f}{ratio}")
    if other is not None:
        low, high = min(other.seconds) / max(again.seconds), max(other.seconds) / min(first.seconds)
        print(f"{'  from, to':44}{low:8.2f} {high:.2f}")
        print(f"loss of the first step: {first.loss:.6f}, {other.loss:.6f}")
    if note:
        print(f"the plain step is {note}")


if __name__ == "__main__":
    main()
