"""Multi-head attention, over tokens of one frame and across frames.

Parameters carry diffusers' names: `to_q`, `to_k`, `to_v` without a bias, `to_out_0` with one.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float

HEAD_BY_HEAD = 128 * 128
"""Scores of one head (queries times keys) from which on heads are computed one after the other."""


def attend(
    q: Float[Array, "g n h d"], k: Float[Array, "g m h d"], v: Float[Array, "g m h d"]
) -> Float[Array, "g n h d"]:
    """softmax(q k^T / sqrt(d)) v, group by group and head by head; the softmax is in float32.

    Without a gradient, large scores are never in memory for all groups and heads together: 32 frames of
    64x64 latents would need 70 GB. On a CPU those of one head stay in the cache, which is four times as fast
    (fyp_jax/README.md).
    """
    if q.shape[1] * k.shape[1] < HEAD_BY_HEAD:
        return jax.nn.dot_product_attention(q, k, v)
    heads = tuple(rearrange(t, "g n h d -> (g h) n d") for t in (q, k, v))
    return rearrange(jax.lax.map(_attend_one_head, heads), "(g h) n d -> g n h d", g=q.shape[0])


def _attend_one_head(
    qkv: tuple[Float[Array, "n d"], Float[Array, "m d"], Float[Array, "m d"]],
) -> Float[Array, "n d"]:
    q, k, v = qkv
    scores = jnp.matmul(q * q.shape[-1] ** -0.5, k.T, preferred_element_type=jnp.float32)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    # Dividing behind the product touches n x d numbers instead of n x m.
    read = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return (read / weights.sum(axis=-1, keepdims=True)).astype(q.dtype)


class Attention(nn.Module):
    """Queries from `x`; keys and values from `context`, or from `x` itself where that is None."""

    heads: int
    width: int
    zero_init: bool = False
    dtype: DTypeLike = jnp.float32

    def setup(self):
        self.to_q = nn.Dense(self.width, use_bias=False, dtype=self.dtype)
        self.to_k = nn.Dense(self.width, use_bias=False, dtype=self.dtype)
        self.to_v = nn.Dense(self.width, use_bias=False, dtype=self.dtype)
        init = nn.initializers.zeros if self.zero_init else nn.initializers.lecun_normal()
        self.to_out = [nn.Dense(self.width, kernel_init=init, dtype=self.dtype)]

    def __call__(
        self, x: Float[Array, "*g n c"], context: Float[Array, "*g m d"] | None = None
    ) -> Float[Array, "*g n c"]:
        context = x if context is None else context
        return self.mix(self.to_q(x), self.to_k(context), self.to_v(context))

    def mix(
        self, q: Float[Array, "*g n c"], k: Float[Array, "*g m c"], v: Float[Array, "*g m c"]
    ) -> Float[Array, "*g n c"]:
        """Projected queries, keys and values -> output projection of what the heads read."""

        def split(t: Array) -> Array:
            return t.reshape(-1, t.shape[-2], self.heads, self.width // self.heads)

        return self.to_out[0](attend(split(q), split(k), split(v)).reshape(q.shape))


class CrossFrameAttention(Attention):
    """Frame i reads frame 0 and frame max(i-1, 0), in this order (Follow Your Pose, eq. 4)."""

    def __call__(self, x: Float[Array, "b f n c"]) -> Float[Array, "b f n c"]:
        return self.mix(self.to_q(x), first_and_previous(self.to_k(x)), first_and_previous(self.to_v(x)))


def first_and_previous(tokens: Float[Array, "b f n c"]) -> Float[Array, "b f m c"]:
    """For each frame, the tokens of frame 0 followed by those of the frame before it; m = 2 n."""
    first = tokens[:, :1]
    previous = jnp.concatenate([first, tokens[:, :-1]], axis=1)
    return jnp.concatenate([jnp.broadcast_to(first, tokens.shape), previous], axis=2)
