"""Multi-head attention, over tokens of one frame and across frames.

Parameters carry diffusers' names: `to_q`, `to_k`, `to_v` without a bias, `to_out_0` with one.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def attend(
    q: Float[Array, "g n h d"], k: Float[Array, "g m h d"], v: Float[Array, "g m h d"]
) -> Float[Array, "g n h d"]:
    """softmax(q k^T / sqrt(d)) v, group by group and head by head; the softmax is in float32."""
    return jax.nn.dot_product_attention(q, k, v)


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
