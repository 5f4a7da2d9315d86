"""Compare implementations of attention on this machine, at the sizes of a Stable Diffusion 1.4 block.

    python scripts/benchmark.py attention [--side 32]

Prints the best time of a few interleaved runs of each, and the temporary memory of its program.
"""

import argparse

import jax
import jax.numpy as jnp
from einops import rearrange

from benchmarks.timing import interleaved_times
from fyp_jax.models.attention_functions import blockwise_attention


def batched(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """All groups and heads in one batched product, heads first."""
    q, k, v = (rearrange(t, "g n h d -> g h n d") for t in (q, k, v))
    weights = jax.nn.softmax(jnp.einsum("ghnd,ghmd->ghnm", q * q.shape[-1] ** -0.5, k))
    return rearrange(jnp.einsum("ghnm,ghmd->ghnd", weights, v), "g h n d -> g n h d")


def group_by_group(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """A loop over groups; all heads of one group at a time."""
    return jax.lax.map(lambda qkv: batched(*(t[None] for t in qkv))[0], (q, k, v))


def products_alone(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """A loop over heads with the two products and no softmax: a lower bound of the time, not attention."""
    heads = tuple(rearrange(t, "g n h d -> (g h) n d") for t in (q, k, v))
    return jax.lax.map(lambda qkv: (qkv[0] @ qkv[1].T) @ qkv[2], heads)


def blockwise(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """The implementation of the models."""
    return blockwise_attention(q[None], [k[None]], [v[None]])[0]


IMPLEMENTATIONS = {
    "jax.nn.dot_product_attention": jax.nn.dot_product_attention,
    "batched over groups and heads": batched,
    "group by group": group_by_group,
    "blockwise (ours)": blockwise,
    "head by head, no softmax": products_alone,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=32, help="height and width of the latents (default: 32)")
    parser.add_argument("--frames", type=int, default=8, help="default: 8")
    parser.add_argument("--runs", type=int, default=4, help="timed runs of each (default: 4)")
    args = parser.parse_args()

    queries, heads, width = args.side**2, 8, 40
    shapes = [(args.frames, count, heads, width) for count in (queries, 2 * queries, 2 * queries)]
    qkv = [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]
    compiled = {name: jax.jit(function).lower(*qkv).compile() for name, function in IMPLEMENTATIONS.items()}
    calls = {name: lambda f=program: f(*qkv) for name, program in compiled.items()}
    times = interleaved_times(calls, args.runs)
    flops = 4 * args.frames * heads * queries * 2 * queries * width
    print(f"{args.frames} frames, {queries} queries x {2 * queries} keys, {heads} heads of {width}, float32")
    for name, program in compiled.items():
        best, analysis = min(times[name]), program.memory_analysis()
        memory = f"{analysis.temp_size_in_bytes / 2**20:8.0f} MiB" if analysis else ""
        print(f"{name:32}{best * 1e3:8.0f} ms {flops / best / 1e9:6.0f} GFLOP/s {memory}")
