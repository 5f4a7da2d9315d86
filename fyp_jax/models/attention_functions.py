"""softmax(q k^T / sqrt(d)) v for clips, in two forms. Each is an `AttentionFn`, and `ExecutionConfig` chooses
one.

Keys and values come in parts, so that frames can read tokens of several frames without a copy: a part is
either each frame's own, [g f m h d], or the same for all frames, [g 1 m h d].
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

AttentionFn = Callable[[Array, Sequence[Array], Sequence[Array]], Array]
"""(queries [g f n h d], parts of keys, parts of values) -> [g f n h d]."""

Parts = Sequence[Float[Array, "g _ _ h d"]]
"""Keys or values in parts."""

MIN_BLOCKWISE_SCORES = 128 * 128
"""From so many scores of one head on (queries times keys), `blockwise_attention` computes heads one after the
other."""

MAX_BLOCK_SCORES = 512 * 8192
"""Scores that are computed at a time: 16 MB, which XLA keeps in a TPU core's own memory (VMEM)."""


def blockwise_attention(
    q: Float[Array, "g f n h d"],
    keys: Parts,
    values: Parts,
) -> Float[Array, "g f n h d"]:
    """softmax(q [k_1 k_2 ...]^T / sqrt(d)) [v_1 v_2 ...]; the softmax is in float32.

    Large scores are computed head by head, frame by frame and block by block of queries, and are
    rematerialised for a gradient. So they stay in a CPU's cache and in a TPU's VMEM (docs/benchmarks.md).
    Small scores take `jax.nn.dot_product_attention`.
    """
    groups, frames, queries = q.shape[:3]
    scores = queries * sum(k.shape[2] for k in keys)
    if scores < MIN_BLOCKWISE_SCORES:
        parts = (q, concat_kv(keys, frames), concat_kv(values, frames))
        merged = (rearrange(t, "g f n h d -> (g f) n h d") for t in parts)
        return jax.nn.dot_product_attention(*merged).reshape(q.shape)
    heads_first = jax.tree.map(lambda t: rearrange(t, "g f n h d -> (g h) f n d"), (q, keys, values))
    fitting = (i for i in range(1, queries) if queries % i == 0 and scores <= i * MAX_BLOCK_SCORES)
    blocks = next(fitting, queries)
    out = _map(functools.partial(_attend_one_head, blocks=blocks), heads_first)
    return rearrange(out, "(g h) f n d -> g f n h d", g=groups)


def plain_attention(
    q: Float[Array, "g f n h d"],
    keys: Parts,
    values: Parts,
) -> Float[Array, "g f n h d"]:
    """The same function with all scores of all heads and frames at once: the baseline of compile checks."""
    k, v = (concat_kv(parts, q.shape[1]) for parts in (keys, values))
    scores = jnp.einsum("gfnhd,gfmhd->gfhnm", q, k) * q.shape[-1] ** -0.5
    return jnp.einsum("gfhnm,gfmhd->gfnhd", jax.nn.softmax(scores, axis=-1), v)


def concat_kv(parts: Parts, frames: int) -> Float[Array, "g {frames} m h d"]:
    """All tokens that each frame reads; a part that frames share is copied for each of them."""
    copies = [jnp.broadcast_to(t, (t.shape[0], frames, *t.shape[2:])) for t in parts]
    return jnp.concatenate(copies, axis=2)


def _map(function: Callable[[Any], Array], arrays: Any) -> Array:
    """`lax.map`, but without a loop for a single element."""
    if len(jax.tree.leaves(arrays)[0]) == 1:
        return function(jax.tree.map(lambda t: t[0], arrays))[None]
    return jax.lax.map(function, arrays)


def _attend_one_head(
    parts: tuple[Float[Array, "f n d"], Sequence[Float[Array, "_ _ d"]], Sequence[Float[Array, "_ _ d"]]],
    blocks: int,
) -> Float[Array, "f n d"]:
    q, *kv = parts
    # Float32 here and back inside of the product: so XLA adds up the gradients of all blocks in float32.
    as_float32: Callable[[Array], Array] = functools.partial(jnp.asarray, dtype=jnp.float32)
    shared = jax.tree.map(lambda t: as_float32(t[0]) if len(t) != len(q) else None, kv)
    per_frame = jax.tree.map(lambda t: t if len(t) == len(q) else None, kv)

    def one_frame(parts: Any) -> Float[Array, "n d"]:
        q, own = parts
        keys, values = (
            [
                of_all if of_frame is None else as_float32(of_frame)
                for of_all, of_frame in zip(*pair, strict=True)
            ]
            for pair in zip(shared, own, strict=True)
        )
        # A gradient rematerialises the scores block by block.
        one_block = jax.checkpoint(
            functools.partial(_attend_one_block, keys=keys, values=values), prevent_cse=False
        )
        return _map(one_block, q.reshape(blocks, -1, q.shape[-1])).reshape(q.shape)

    return _map(one_frame, (q, per_frame))


def _attend_one_block(
    q: Float[Array, "n d"], keys: Sequence[Float[Array, "_ d"]], values: Sequence[Float[Array, "_ d"]]
) -> Float[Array, "n d"]:
    product = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
    q = q * q.shape[-1] ** -0.5
    scores = [product(q, k.astype(q.dtype).T) for k in keys]
    largest = functools.reduce(jnp.maximum, [s.max(axis=-1, keepdims=True) for s in scores])
    weights = [jnp.exp(s - jax.lax.stop_gradient(largest)) for s in scores]
    # The division comes after the product, where it touches n x d numbers instead of n x m.
    read = [product(w.astype(q.dtype), v.astype(q.dtype)) for w, v in zip(weights, values, strict=True)]
    total = [w.sum(axis=-1, keepdims=True) for w in weights]
    return jnp.asarray(sum(read) / sum(total), q.dtype)
