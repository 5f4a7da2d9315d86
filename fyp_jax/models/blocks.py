"""The three kinds of UNet blocks: down, middle and up.

`heads` is the number of attention heads behind each ResNet layer, None for a block without transformers.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fyp_jax.models.resnet import Downsample, ResnetBlock, Upsample
from fyp_jax.models.transformer import Transformer
from fyp_jax.models.unet_config import UNet3DConfig
from fyp_jax.types import Maps, Text

Time = Float[Array, "b t"]


class DownBlock(nn.Module):
    """ResNet layers and transformers, then half the size unless it is the last block."""

    config: UNet3DConfig
    width: int
    heads: int | None
    last: bool
    dtype: DTypeLike = jnp.float32

    def setup(self):
        layers = range(self.config.layers_per_block)
        self.resnets = [ResnetBlock(self.config, self.width, self.dtype) for _ in layers]
        if self.heads is not None:
            self.attentions = [Transformer(self.config, self.heads, self.width, self.dtype) for _ in layers]
        if not self.last:
            self.downsamplers = [Downsample(self.width, self.dtype)]

    def __call__(self, x: Maps, time: Time, text: Text, pose: Maps | None) -> tuple[Maps, list[Maps]]:
        """Also gives the skips, one a layer and one behind the downsampler; `pose` joins the last layer's."""
        skips = []
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, time)
            if self.heads is not None:
                x = self.attentions[i](x, text)
            if pose is not None and i == len(self.resnets) - 1:
                x = x + pose.astype(x.dtype)
            skips.append(x)
        if not self.last:
            x = self.downsamplers[0](x)
            skips.append(x)
        return x, skips


class MidBlock(nn.Module):
    """ResNet layer, transformer, ResNet layer."""

    config: UNet3DConfig
    width: int
    heads: int
    dtype: DTypeLike = jnp.float32

    def setup(self):
        self.resnets = [ResnetBlock(self.config, self.width, self.dtype) for _ in range(2)]
        self.attentions = [Transformer(self.config, self.heads, self.width, self.dtype)]

    def __call__(self, x: Maps, time: Time, text: Text) -> Maps:
        x = self.resnets[0](x, time)
        x = self.attentions[0](x, text)
        return self.resnets[1](x, time)


class UpBlock(nn.Module):
    """One layer more than a down block, each fed with a skip; then twice the size unless it is the last."""

    config: UNet3DConfig
    width: int
    heads: int | None
    last: bool
    dtype: DTypeLike = jnp.float32

    def setup(self):
        layers = range(self.config.layers_per_block + 1)
        self.resnets = [ResnetBlock(self.config, self.width, self.dtype) for _ in layers]
        if self.heads is not None:
            self.attentions = [Transformer(self.config, self.heads, self.width, self.dtype) for _ in layers]
        if not self.last:
            self.upsamplers = [Upsample(self.width, self.dtype)]

    def __call__(self, x: Maps, skips: list[Maps], time: Time, text: Text) -> Maps:
        """Takes its skips from the end of `skips`, so that the list is empty behind the last block."""
        for i, resnet in enumerate(self.resnets):
            x = resnet(jnp.concatenate([x, skips.pop()], axis=-1), time)
            if self.heads is not None:
                x = self.attentions[i](x, text)
        return x if self.last else self.upsamplers[0](x)
