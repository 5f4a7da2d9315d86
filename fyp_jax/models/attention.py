"""Multi-head attention, over tokens of one frame and across frames.

Parameters carry diffusers' names: `to_q`, `to_k`, `to_v` without a bias, `to_out_0` with one.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from fyp_jax.models.execution import ExecutionConfig, sparse_causal_kv

MIN_BLOCKWISE_SCORES = 128 * 128
"""Scores of one head (queries times keys) from which on heads are computed one after the other."""

MAX_BLOCK_SCORES = 512 * 8192
"""Scores that are computed at a time: 16 MB, which XLA keeps in a TPU core's own memory (VMEM)."""


def blockwise_attention(
    q: Float[Array, "g f n h d"],
    keys: Sequence[Float[Array, "g _ _ h d"]],
    values: Sequence[Float[Array, "g _ _ h d"]],
) -> Float[Array, "g f n h d"]:
    """softmax(q [k_1 k_2 ...]^T / sqrt(d)) [v_1 v_2 ...]; the softmax is in float32.

    Keys are each frame's own, [g f m h d], or the same for all frames, [g 1 m h d]; those are not copied.
    Large scores are computed head by head, frame by frame and block by block of queries, and once more for a
    gradient: so they stay in a CPU's cache and in a TPU's VMEM (fyp_jax/README.md).
    """
    groups, frames, queries = q.shape[:3]
    scores = queries * sum(k.shape[2] for k in keys)
    if scores < MIN_BLOCKWISE_SCORES:
        everything = (q, concat_kv(keys, frames), concat_kv(values, frames))
        merged = (rearrange(t, "g f n h d -> (g f) n h d") for t in everything)
        return jax.nn.dot_product_attention(*merged).reshape(q.shape)
    heads_first = jax.tree.map(lambda t: rearrange(t, "g f n h d -> (g h) f n d"), (q, keys, values))
    fitting = (i for i in range(1, queries) if queries % i == 0 and scores <= i * MAX_BLOCK_SCORES)
    blocks = next(fitting, queries)
    out = _one_by_one(functools.partial(_one_head, blocks=blocks), heads_first)
    return rearrange(out, "(g h) f n d -> g f n h d", g=groups)


def concat_kv(parts: Sequence[Float[Array, "g _ _ h d"]], frames: int) -> Float[Array, "g {frames} m h d"]:
    """All tokens that each frame reads, with a copy for each of what they share."""
    copies = [jnp.broadcast_to(t, (t.shape[0], frames, *t.shape[2:])) for t in parts]
    return jnp.concatenate(copies, axis=2)


def _one_by_one(function: Callable[[Any], Array], arrays: Any) -> Array:
    """`lax.map`, but for a single element no loop."""
    if len(jax.tree.leaves(arrays)[0]) == 1:
        return function(jax.tree.map(lambda t: t[0], arrays))[None]
    return jax.lax.map(function, arrays)


def _one_head(
    parts: tuple[Float[Array, "f n d"], Sequence[Float[Array, "_ _ d"]], Sequence[Float[Array, "_ _ d"]]],
    blocks: int,
) -> Float[Array, "f n d"]:
    q, *rest = parts
    # In float32 here and back in the product: so XLA adds up the gradients of all blocks in float32.
    exact: Callable[[Array], Array] = functools.partial(jnp.asarray, dtype=jnp.float32)
    of_all = jax.tree.map(lambda t: exact(t[0]) if len(t) != len(q) else None, rest)
    of_each = jax.tree.map(lambda t: t if len(t) == len(q) else None, rest)

    def one_frame(parts: Any) -> Float[Array, "n d"]:
        q, of_this = parts
        keys, values = (
            [shared if own is None else exact(own) for shared, own in zip(*pair, strict=True)]
            for pair in zip(of_all, of_this, strict=True)
        )
        # A gradient computes the scores again, block by block, instead of keeping them.
        one_block = jax.checkpoint(functools.partial(_one_block, keys=keys, values=values), prevent_cse=False)
        return _one_by_one(one_block, q.reshape(blocks, -1, q.shape[-1])).reshape(q.shape)

    return _one_by_one(one_frame, (q, of_each))


def _one_block(
    q: Float[Array, "n d"], keys: Sequence[Float[Array, "_ d"]], values: Sequence[Float[Array, "_ d"]]
) -> Float[Array, "n d"]:
    product = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)
    q = q * q.shape[-1] ** -0.5
    scores = [product(q, k.astype(q.dtype).T) for k in keys]
    largest = functools.reduce(jnp.maximum, [s.max(axis=-1, keepdims=True) for s in scores])
    weights = [jnp.exp(s - jax.lax.stop_gradient(largest)) for s in scores]
    # Dividing behind the product touches n x d numbers instead of n x m.
    read = [product(w.astype(q.dtype), v.astype(q.dtype)) for w, v in zip(weights, values, strict=True)]
    total = [w.sum(axis=-1, keepdims=True) for w in weights]
    return jnp.asarray(sum(read) / sum(total), q.dtype)


class Attention(nn.Module):
    """Queries from `x`; keys and values from `context`, or from `x` itself where that is None."""

    heads: int
    width: int
    zero_init: bool = False
    execution: ExecutionConfig = ExecutionConfig()

    def setup(self):
        self.to_q = nn.Dense(self.width, use_bias=False, dtype=self.execution.dtype)
        self.to_k = nn.Dense(self.width, use_bias=False, dtype=self.execution.dtype)
        self.to_v = nn.Dense(self.width, use_bias=False, dtype=self.execution.dtype)
        init = nn.initializers.zeros if self.zero_init else nn.initializers.lecun_normal()
        self.to_out = [nn.Dense(self.width, kernel_init=init, dtype=self.execution.dtype)]

    def __call__(
        self, x: Float[Array, "*g n c"], context: Float[Array, "*g m d"] | None = None
    ) -> Float[Array, "*g n c"]:
        context = x if context is None else context
        key, value = (layer(context)[..., None, :, :] for layer in (self.to_k, self.to_v))
        return self.attend_and_project(self.to_q(x)[..., None, :, :], [key], [value])[..., 0, :, :]

    def attend_and_project(
        self,
        q: Float[Array, "*g f n c"],
        keys: Sequence[Float[Array, "*g _ _ c"]],
        values: Sequence[Float[Array, "*g _ _ c"]],
    ) -> Float[Array, "*g f n c"]:
        """Projected queries, keys and values (`attend`) -> output projection of what the heads read."""

        def split(t: Array) -> Array:
            return t.reshape(-1, *t.shape[-3:-1], self.heads, self.width // self.heads)

        read = blockwise_attention(split(q), [split(k) for k in keys], [split(v) for v in values])
        return self.to_out[0](read.reshape(q.shape))


class CrossFrameAttention(Attention):
    """Frame i reads frame 0 and frame max(i-1, 0), in this order (Follow Your Pose, eq. 4)."""

    cross_frame: bool = True
    """False: frame i reads itself."""

    def __call__(self, x: Float[Array, "b f n c"]) -> Float[Array, "b f n c"]:
        if not self.cross_frame:
            return super().__call__(x)
        keys, values = (
            sparse_causal_kv(layer(x), self.execution.frame_axis) for layer in (self.to_k, self.to_v)
        )
        return self.attend_and_project(self.to_q(x), keys, values)
