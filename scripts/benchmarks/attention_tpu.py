"""Forms of cross-frame attention beside each other, by what the TPU compiler makes of them; no TPU is needed.

    python scripts/benchmark.py attention_tpu [--topology v5e:2x2] [--side 64]

One SD 1.4 block in bfloat16 on one chip; every frame reads frame 0 and the one before it. Prints temporaries,
bytes moved in HBM, FLOPs and the longest term of the roofline, alone and with the gradient.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import flash_attention as pallas
from jax.sharding import SingleDeviceSharding

from fyp_jax.errors import reason
from fyp_jax.models import attention
from fyp_jax.tpu import hlo
from fyp_jax.tpu.chips import topology_devices

HEADS, WIDTH, LANES = 8, 40, 128
GIB = 2**30


def in_blocks(block: int) -> Callable[..., jax.Array]:
    """What the models call, with so many scores at a time."""

    def form(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        ours, attention.MAX_BLOCK_SCORES = attention.MAX_BLOCK_SCORES, block
        try:
            read = [[t[None, :1], before(t)[None]] for t in (k, v)]
            return attention.blockwise_attention(q[None], *read)[0]
        finally:
            attention.MAX_BLOCK_SCORES = ours

    return form


def plain(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """All scores at once."""
    return jax.nn.dot_product_attention(q, both(k), both(v))


def flash(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """JAX's Pallas kernel, heads filled up to the lanes of the matrix unit, 512 x 512 scores at a time."""
    blocks = dict.fromkeys(pallas.BlockSizes.__dataclass_fields__, 512) | {"block_b": 1}
    filled = (
        jnp.pad(jnp.swapaxes(t, 1, 2), ((0, 0),) * 3 + ((0, LANES - WIDTH),)) for t in (q, both(k), both(v))
    )
    read = pallas.flash_attention(*filled, sm_scale=WIDTH**-0.5, block_sizes=pallas.BlockSizes(**blocks))
    return jnp.swapaxes(read, 1, 2)[..., :WIDTH]


def before(t: jax.Array) -> jax.Array:
    return jnp.concatenate([t[:1], t[:-1]])


def both(t: jax.Array) -> jax.Array:
    return jnp.concatenate([jnp.broadcast_to(t[:1], t.shape), before(t)], axis=1)


def with_gradient(form: Callable[..., jax.Array]) -> Callable[..., Any]:
    return jax.grad(lambda q, k, v: form(q, k, v).astype(jnp.float32).sum(), (0, 1, 2))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--topology", default="v5e:2x2", help="CHIP:SHAPE (%(default)s); one chip is used")
    parser.add_argument("--side", type=int, default=64, help="height and width of the latents (%(default)s)")
    parser.add_argument("--frames", type=int, default=8, help="%(default)s by default")
    args = parser.parse_args()
    chip, devices = topology_devices(args.topology)
    assert chip, "a topology has a chip"
    tokens = args.side**2
    forms = {
        "all scores at once": plain,
        "head by head": in_blocks(2 * tokens**2),
        **{f"in blocks of {rows} queries": in_blocks(rows * 2 * tokens) for rows in (1024, 512, 256)},
        "Pallas flash attention": flash,
    }
    sharding = SingleDeviceSharding(devices[0])
    x = jax.ShapeDtypeStruct((args.frames, tokens, HEADS, WIDTH), jnp.bfloat16, sharding=sharding)
    print(
        "| form | | temporaries, GiB | moved in HBM, GiB | TFLOP | ms, at least |\n|---|---|---|---|---|---|"
    )
    for name, form in forms.items():
        for what, function in (("forward", form), ("with gradient", with_gradient(form))):
            try:
                compiled = jax.jit(function).lower(x, x, x).compile()
            except jax.errors.JaxRuntimeError as error:
                print(f"| {name} | {what} | does not compile: {reason(error)[:120]} | | | |")
                continue
            found, memory = hlo.read(compiled.as_text() or ""), compiled.memory_analysis()
            temporaries = (memory.temp_size_in_bytes if memory else 0) / GIB
            longest = max(found.flops / chip.flops, found.hbm_bytes / chip.bandwidth) * 1e3
            figures = f"{temporaries:.2f} | {found.hbm_bytes / GIB:.1f} | {found.flops / 1e12:.2f}"
            print(f"| {name} | {what} | {figures} | {longest:.1f} |", flush=True)


if __name__ == "__main__":
    main()
