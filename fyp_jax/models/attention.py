"""Multi-head attention modules: within a frame, to the text, and across frames.

Parameters carry diffusers' names: `to_q`, `to_k`, `to_v` without a bias, `to_out_0` with one. How scores are
computed is an argument: `execution.forms.attention`.
"""

from collections.abc import Sequence

import flax.linen as nn
from jaxtyping import Array, Float

from fyp_jax.models.attention_edit import (
    WORDS,
    AttentionEdit,
    Rows,
    add_frame_rows,
    add_text_rows,
    split_frame_rows,
    split_text_rows,
)
from fyp_jax.models.execution import ExecutionConfig, sparse_causal_kv


class Attention(nn.Module):
    """Attention whose queries come from `x`, and whose keys and values come from `context`, or from `x` if
    None."""

    heads: int
    width: int
    zero_init: bool = False
    execution: ExecutionConfig = ExecutionConfig()

    def setup(self):
        dtype = self.execution.dtype
        self.to_q = nn.Dense(self.width, use_bias=False, dtype=dtype)
        self.to_k = nn.Dense(self.width, use_bias=False, dtype=dtype)
        self.to_v = nn.Dense(self.width, use_bias=False, dtype=dtype)
        init = nn.initializers.zeros if self.zero_init else nn.initializers.lecun_normal()
        self.to_out = [nn.Dense(self.width, kernel_init=init, dtype=dtype)]

    def __call__(
        self,
        x: Float[Array, "*g n c"],
        context: Float[Array, "*g m d"] | None = None,
        edit: AttentionEdit | None = None,
    ) -> Float[Array, "*g n c"]:
        context = x if context is None else context
        key, value = (layer(context)[..., None, :, :] for layer in (self.to_k, self.to_v))
        q = self.to_q(x)[..., None, :, :]
        if edit is None or (edit.source_weights is None and edit.words is None):
            return self.attend_and_project(q, [key], [value])[..., 0, :, :]
        rows = add_text_rows(edit, q, key, value, self.heads)
        out, maps = split_text_rows(edit, self.attend(*rows), self.heads)
        if maps is not None:
            self.sow(WORDS, "map", maps)
        return self.to_out[0](out)[..., 0, :, :]

    def attend_and_project(
        self,
        q: Float[Array, "*g f n c"],
        keys: Sequence[Float[Array, "*g _ _ c"]],
        values: Sequence[Float[Array, "*g _ _ c"]],
    ) -> Float[Array, "*g f n c"]:
        """Projected queries, and parts of projected keys and values (`AttentionFn`) -> the output
        projection."""
        return self.to_out[0](self.attend(q, keys, values))

    def attend(
        self,
        q: Float[Array, "*g f n c"],
        keys: Sequence[Float[Array, "*g _ _ c"]],
        values: Sequence[Float[Array, "*g _ _ c"]],
    ) -> Float[Array, "*g f n c"]:
        """The same before the output projection."""

        def split(t: Array) -> Array:
            return t.reshape(-1, *t.shape[-3:-1], self.heads, self.width // self.heads)

        heads = split(q), [split(k) for k in keys], [split(v) for v in values]
        if self.execution.attention_hook is not None:
            heads = self.execution.attention_hook("/".join(self.path), *heads)
        return self.execution.forms.attention(*heads).reshape(q.shape)


class CrossFrameAttention(Attention):
    """Attention of frame i to frame 0 and frame max(i-1, 0), in this order (Follow Your Pose, eq. 4)."""

    cross_frame: bool = True
    """False: each frame attends to itself alone."""

    def __call__(
        self, x: Float[Array, "b f n c"], edit: AttentionEdit | None = None
    ) -> Float[Array, "b f n c"]:
        own = None if edit is None else edit.own
        if not self.cross_frame and own is None:
            return super().__call__(x)
        layers = self.to_k, self.to_v
        if self.cross_frame:
            keys, values = (sparse_causal_kv(layer(x), self.execution.frame_axis) for layer in layers)
        else:
            keys, values = ([layer(x)] for layer in layers)
        if own is None:
            return self.attend_and_project(self.to_q(x), keys, values)
        rows = add_frame_rows(own, Rows(self.to_q(x), keys, values))
        return self.to_out[0](split_frame_rows(own, self.attend(*rows)))
