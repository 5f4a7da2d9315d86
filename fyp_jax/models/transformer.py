"""The transformer of a clip: attention across frames, to the text, and along time."""

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fyp_jax.models.attention import Attention, CrossFrameAttention
from fyp_jax.models.attention_edit import AttentionEdit
from fyp_jax.models.execution import ExecutionConfig, frames_to_tokens_all_to_all, tokens_to_frames_all_to_all
from fyp_jax.models.resnet import conv1x1
from fyp_jax.models.unet_config import UNet3DConfig
from fyp_jax.types import TextEmbeddings

TEMPORAL_RANK = 160
"""Channels between the two temporal convolutions of a layer that is at least as wide."""


class GEGLU(nn.Module):
    """value * gelu(gate), both from one projection (Shazeer 2020), with the exact GELU."""

    width: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*g c"]) -> Float[Array, "*g w"]:
        value, gate = jnp.split(nn.Dense(2 * self.width, dtype=self.dtype, name="proj")(x), 2, axis=-1)
        return value * nn.gelu(gate, approximate=False)


class FeedForward(nn.Module):
    """GEGLU to four times the width, and a projection back. PyTorch's `net.1` is a dropout without
    parameters."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*g c"]) -> Float[Array, "*g c"]:
        hidden = GEGLU(4 * x.shape[-1], self.dtype, name="net_0")(x)
        return nn.Dense(x.shape[-1], dtype=self.dtype, name="net_2")(hidden)


class TemporalConv(nn.Module):
    """x + up(down(x)): two convolutions of width 3 over the frames, of low rank; at first the identity."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "g f c"]) -> Float[Array, "g f c"]:
        width = x.shape[-1]
        rank = width // 2 if width < TEMPORAL_RANK else TEMPORAL_RANK

        def conv(name: str, width: int, init: nn.initializers.Initializer) -> nn.Conv:
            return nn.Conv(width, (3,), use_bias=False, kernel_init=init, dtype=self.dtype, name=name)

        hidden = conv("down", rank, nn.initializers.normal(1 / rank))(x)
        return x + conv("up", width, nn.initializers.zeros)(hidden)


class TransformerBlock(nn.Module):
    """Cross-frame attention, text attention, feed-forward, temporal attention, temporal convolution; each is
    added to its input."""

    config: UNet3DConfig
    heads: int
    width: int
    execution: ExecutionConfig = ExecutionConfig()

    def setup(self):
        dtype = self.execution.dtype
        self.norm1, self.norm2, self.norm3, self.norm_temp = (
            nn.LayerNorm(epsilon=1e-5, dtype=dtype) for _ in range(4)
        )
        self.attn1 = CrossFrameAttention(
            self.heads, self.width, execution=self.execution, cross_frame=self.config.cross_frame_attention
        )
        self.attn2 = Attention(self.heads, self.width, execution=self.execution)
        self.ff = FeedForward(dtype)
        self.attn_temp = Attention(self.heads, self.width, self.config.zero_init_temporal, self.execution)
        self.conv_temporal = TemporalConv(dtype)

    def __call__(
        self, x: Float[Array, "b f n c"], text: TextEmbeddings, edit: AttentionEdit | None = None
    ) -> Float[Array, "b f n c"]:
        frames, tokens = x.shape[1:3]
        x = x + self.attn1(self.norm1(x), edit)
        # All frames of a clip read the same text, so their queries can go into one attention.
        queries = rearrange(self.norm2(x), "b f n c -> b (f n) c")
        x = x + rearrange(self.attn2(queries, text, edit), "b (f n) c -> b f n c", f=frames)
        x = x + self.ff(self.norm3(x))

        x = frames_to_tokens_all_to_all(x, self.execution.frame_axis)
        local_tokens = x.shape[2]
        x = rearrange(x, "b f n c -> (b n) f c")
        x = x + self.attn_temp(self.norm_temp(x))
        x = self.conv_temporal(x)
        return tokens_to_frames_all_to_all(
            rearrange(x, "(b n) f c -> b f n c", n=local_tokens), self.execution.frame_axis, tokens
        )


class Transformer(nn.Module):
    """GroupNorm of each frame, projection, transformer blocks, projection; the result is added to the
    input."""

    config: UNet3DConfig
    heads: int
    width: int
    execution: ExecutionConfig = ExecutionConfig()

    def setup(self):
        self.norm = nn.GroupNorm(self.config.norm_num_groups, epsilon=1e-6, dtype=self.execution.dtype)
        self.proj_in, self.proj_out = self._projection(), self._projection()
        self.transformer_blocks = [
            TransformerBlock(self.config, self.heads, self.width, self.execution)
            for _ in range(self.config.transformer_layers_per_block)
        ]

    def _projection(self) -> nn.Module:
        if self.config.use_linear_projection:
            return nn.Dense(self.width, dtype=self.execution.dtype)
        return conv1x1(self.width, self.execution)

    def __call__(
        self, x: Float[Array, "b f h w c"], text: TextEmbeddings, edit: AttentionEdit | None = None
    ) -> Float[Array, "b f h w c"]:
        frames, height = x.shape[1:3]
        tokens = self.norm(rearrange(x, "b f h w c -> (b f) h w c"))
        tokens = rearrange(self.proj_in(tokens), "(b f) h w c -> b f (h w) c", f=frames)
        for block in self.transformer_blocks:
            tokens = block(tokens, text, edit)
        return x + self.proj_out(rearrange(tokens, "b f (h w) c -> b f h w c", h=height))
