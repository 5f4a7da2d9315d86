"""Multi-head attention, over tokens of one frame and across frames.

Parameters carry diffusers' names: `to_q`, `to_k`, `to_v` without a bias, `to_out_0` with one.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from fyp_jax.models.compute import Compute, first_and_previous

HEAD_BY_HEAD = 128 * 128
"""Scores of one head (queries times keys) from which on heads are computed one after the other."""


def attend(
    q: Float[Array, "g n h d"], k: Float[Array, "g m h d"], v: Float[Array, "g m h d"]
) -> Float[Array, "g n h d"]:
    """softmax(q k^T / sqrt(d)) v, group by group and head by head; the softmax is in float32.

    Large scores are never in memory for all groups and heads together: 32 frames of 64x64 latents would need
    70 GB. On a CPU those of one head stay in the cache, which is four times as fast
    (fyp_jax/README.md).
    """
    if q.shape[1] * k.shape[1] < HEAD_BY_HEAD:
        return jax.nn.dot_product_attention(q, k, v)
    heads = tuple(rearrange(t, "g n h d -> (g h) n d") for t in (q, k, v))
    # A gradient computes the scores again, head by head, instead of keeping those of all heads.
    attend_one_head = jax.checkpoint(_attend_one_head, prevent_cse=False)
    return rearrange(jax.lax.map(attend_one_head, heads), "(g h) n d -> g n h d", g=q.shape[0])


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
    compute: Compute = Compute()

    def setup(self):
        self.to_q = nn.Dense(self.width, use_bias=False, dtype=self.compute.dtype)
        self.to_k = nn.Dense(self.width, use_bias=False, dtype=self.compute.dtype)
        self.to_v = nn.Dense(self.width, use_bias=False, dtype=self.compute.dtype)
        init = nn.initializers.zeros if self.zero_init else nn.initializers.lecun_normal()
        self.to_out = [nn.Dense(self.width, kernel_init=init, dtype=self.compute.dtype)]

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

    cross_frame: bool = True
    """False: frame i reads itself."""

    def __call__(self, x: Float[Array, "b f n c"]) -> Float[Array, "b f n c"]:
        if not self.cross_frame:
            return super().__call__(x)
        keys, values = (first_and_previous(t, self.compute.frame_axis) for t in (self.to_k(x), self.to_v(x)))
        return self.mix(self.to_q(x), keys, values)
