"""Forms of attention beside each other, at the sizes of a Stable Diffusion 1.4 block.

    python scripts/benchmark.py attention [--side 32]

Prints for each form the best time of a few, in turns, and the temporary memory that it compiles to.
"""

import argparse

import jax
import jax.numpy as jnp
from einops import rearrange

from benchmarks.timing import in_turns
from fyp_jax.models.attention import blockwise_attention


def batched(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Heads moved in front, one batched product for all."""
    q, k, v = (rearrange(t, "g n h d -> g h n d") for t in (q, k, v))
    weights = jax.nn.softmax(jnp.einsum("ghnd,ghmd->ghnm", q * q.shape[-1] ** -0.5, k))
    return rearrange(jnp.einsum("ghnm,ghmd->ghnd", weights, v), "g h n d -> g n h d")


def group_by_group(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """All heads of one frame at a time."""
    return jax.lax.map(lambda qkv: batched(*(t[None] for t in qkv))[0], (q, k, v))


def without_softmax(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Head by head, the two products alone: a bound, not attention."""
    heads = tuple(rearrange(t, "g n h d -> (g h) n d") for t in (q, k, v))
    return jax.lax.map(lambda qkv: (qkv[0] @ qkv[1].T) @ qkv[2], heads)


def in_blocks(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """What the models call."""
    return blockwise_attention(q[None], [k[None]], [v[None]])[0]


FORMS = {
    "jax.nn.dot_product_attention": jax.nn.dot_product_attention,
    "batched over groups and heads": batched,
    "group by group": group_by_group,
    "in blocks (ours)": in_blocks,
    "head by head, no softmax": without_softmax,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--side", type=int, default=32, help="height and width of the latents (default: 32)")
    parser.add_argument("--frames", type=int, default=8, help="default: 8")
    parser.add_argument("--runs", type=int, default=4, help="turns (default: 4)")
    args = parser.parse_args()

    queries, heads, width = args.side**2, 8, 40
    shapes = [(args.frames, count, heads, width) for count in (queries, 2 * queries, 2 * queries)]
    qkv = [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]
    compiled = {name: jax.jit(form).lower(*qkv).compile() for name, form in FORMS.items()}
    took = in_turns({name: lambda f=program: f(*qkv) for name, program in compiled.items()}, args.runs)
    flops = 4 * args.frames * heads * queries * 2 * queries * width
    print(f"{args.frames} frames, {queries} queries x {2 * queries} keys, {heads} heads of {width}, float32")
    for name, program in compiled.items():
        best, analysis = min(took[name]), program.memory_analysis()
        memory = f"{analysis.temp_size_in_bytes / 2**20:8.0f} MiB" if analysis else ""
        print(f"{name:32}{best * 1e3:8.0f} ms {flops / best / 1e9:6.0f} GFLOP/s {memory}")
