"""Compare implementations of cross-frame attention by what the TPU compiler makes of them, without a TPU.

    python scripts/benchmark.py attention_tpu [--topology v5e:2x2] [--side 64]

One block of Stable Diffusion 1.4 in bfloat16 on one chip; every frame attends to frame 0 and to the frame
before it. Prints temporaries, HBM traffic, hardware FLOPs and the roofline's lower bound, for the forward
pass alone and with the gradient. With `--search`, compares blocks of the models' kernel instead, by the
cycles of its schedule.
"""

import argparse
import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import flash_attention as pallas
from jax.sharding import SingleDeviceSharding

from benchmarks.kernel_cycles import dump_schedules, scheduled_cycles
from fyp_jax.errors import reason
from fyp_jax.models import attention_functions
from fyp_jax.models.attention_kernels.tpu import PallasTpuAttention
from fyp_jax.models.attention_kernels.tpu_blocks import CHIP_BLOCKS, Blocks
from fyp_jax.tpu.hlo_stats import hlo_stats
from fyp_jax.tpu.topologies import topology_devices

HEADS, HEAD_DIM, LANES = 8, 40, 128
GIB = 2**30
CANDIDATES = [
    Blocks(queries, keys, at_once, heads)
    for queries, keys in ((256, 1024), (512, 1024), (512, 4096))
    for at_once in (256, 512)
    for heads in (1, 2, 4)
]
"""Blocks that `--search` compiles."""


def blockwise(max_scores: int) -> Callable[..., jax.Array]:
    """The implementation of the models, with at most `max_scores` scores at a time."""

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        default, attention_functions.MAX_BLOCK_SCORES = attention_functions.MAX_BLOCK_SCORES, max_scores
        try:
            parts = [[t[None, :1], previous_frame(t)[None]] for t in (k, v)]
            return attention_functions.blockwise_attention(q[None], *parts)[0]
        finally:
            attention_functions.MAX_BLOCK_SCORES = default

    return attend


def kernel(attention: PallasTpuAttention) -> Callable[..., jax.Array]:
    """The Pallas kernels of the models."""

    def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attention(q[None], *([t[None, :1], previous_frame(t)[None]] for t in (k, v)))[0]

    return attend


def all_scores_at_once(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Attention that computes all scores at once: the baseline."""
    return jax.nn.dot_product_attention(q, first_and_previous(k), first_and_previous(v))


def flash(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """JAX's Pallas flash attention, in blocks of 512 x 512 scores, with heads padded to the lanes."""
    blocks = dict.fromkeys(pallas.BlockSizes.__dataclass_fields__, 512) | {"block_b": 1}
    qkv = (q, first_and_previous(k), first_and_previous(v))
    padded = (jnp.pad(jnp.swapaxes(t, 1, 2), ((0, 0),) * 3 + ((0, LANES - HEAD_DIM),)) for t in qkv)
    out = pallas.flash_attention(*padded, sm_scale=HEAD_DIM**-0.5, block_sizes=pallas.BlockSizes(**blocks))
    return jnp.swapaxes(out, 1, 2)[..., :HEAD_DIM]


def previous_frame(t: jax.Array) -> jax.Array:
    return jnp.concatenate([t[:1], t[:-1]])


def first_and_previous(t: jax.Array) -> jax.Array:
    return jnp.concatenate([jnp.broadcast_to(t[:1], t.shape), previous_frame(t)], axis=1)


def with_gradient(function: Callable[..., jax.Array]) -> Callable[..., Any]:
    return jax.grad(lambda q, k, v: function(q, k, v).astype(jnp.float32).sum(), (0, 1, 2))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--topology", default="v5e:2x2", help="CHIP:SHAPE (%(default)s); uses one chip")
    parser.add_argument("--side", type=int, default=64, help="height and width of the latents (%(default)s)")
    parser.add_argument("--frames", type=int, default=8, help="%(default)s by default")
    parser.add_argument("--search", action="store_true", help="compare blocks of the models' kernel")
    args = parser.parse_args()
    if args.search:
        with tempfile.TemporaryDirectory() as folder:
            search(args, Path(folder))
        return
    chip, devices = topology_devices(args.topology)
    assert chip, "a topology has a chip"
    tokens = args.side**2
    implementations = {
        "all scores at once": all_scores_at_once,
        "head by head": blockwise(2 * tokens**2),
        **{f"in blocks of {rows} queries": blockwise(rows * 2 * tokens) for rows in (1024, 512, 256)},
        "Pallas flash attention": flash,
        "the models' Pallas kernel": kernel(PallasTpuAttention(devices[0].device_kind)),
    }
    sharding = SingleDeviceSharding(devices[0])
    x = jax.ShapeDtypeStruct((args.frames, tokens, HEADS, HEAD_DIM), jnp.bfloat16, sharding=sharding)
    print("| implementation | | temporaries, GiB | HBM traffic, GiB | TFLOP | lower bound, ms |")
    print("|---|---|---|---|---|---|")
    for name, attend in implementations.items():
        for what, function in (("forward", attend), ("with gradient", with_gradient(attend))):
            try:
                compiled = jax.jit(function).lower(x, x, x).compile()
            except jax.errors.JaxRuntimeError as error:
                print(f"| {name} | {what} | does not compile: {reason(error)[:120]} | | | |")
                continue
            stats, memory = hlo_stats(compiled.as_text() or ""), compiled.memory_analysis()
            temporaries = (memory.temp_size_in_bytes if memory else 0) / GIB
            lower_bound = max(stats.flops / chip.peak_flops, stats.hbm_bytes / chip.hbm_bandwidth) * 1e3
            figures = f"{temporaries:.2f} | {stats.hbm_bytes / GIB:.1f} | {stats.flops / 1e12:.2f}"
            print(f"| {name} | {what} | {figures} | {lower_bound:.1f} |", flush=True)


def search(args: argparse.Namespace, folder: Path) -> None:
    """Print the cycles of the forward and the backward kernel for each of CANDIDATES."""
    dump_schedules(folder)
    _, devices = topology_devices(args.topology)
    kind, sharding = devices[0].device_kind, SingleDeviceSharding(devices[0])
    shape = (args.frames, args.side**2, HEADS, HEAD_DIM)
    x = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)
    print("| queries, keys, keys at once, heads at once | forward | backward, million cycles |")
    print("|---|---|---|")
    for blocks in CANDIDATES:
        chosen = dataclasses.replace(CHIP_BLOCKS[kind], forward=blocks, backward=blocks)
        attend = kernel(PallasTpuAttention(kind, chosen))
        cells = []
        for what, function in (("forward", attend), ("backward", with_gradient(attend))):
            try:
                jax.jit(function).lower(x, x, x).compile()
                cycles = scheduled_cycles(folder, f"attention_{what}")
                cells.append("no schedule" if cycles is None else f"{cycles / 1e6:.2f}")
            except jax.errors.JaxRuntimeError as error:
                cells.append(f"does not compile: {reason(error)[:80]}")
            for file in folder.iterdir():
                file.unlink()
        print(f"| {', '.join(map(str, blocks))} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
