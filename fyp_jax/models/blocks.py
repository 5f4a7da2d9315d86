"""The three kinds of UNet blocks: down, middle and up.

`heads` is the number of attention heads of the transformer after each ResNet block. None: no transformers.
`edit` is the edit of the block's attention at one step, or None.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from fyp_jax.models.attention_edit import AttentionEdit
from fyp_jax.models.execution import ExecutionConfig
from fyp_jax.models.resnet import Downsample, ResnetBlock, Upsample
from fyp_jax.models.transformer import Transformer
from fyp_jax.models.unet_config import UNet3DConfig
from fyp_jax.types import FeatureMaps, TextEmbeddings

Time = Float[Array, "b t"]


class ResnetTransformerStack(nn.Module):
    """What down and up blocks have in common: ResNet blocks, each with a transformer after it if `heads` is
    given."""

    config: UNet3DConfig
    width: int
    heads: int | None
    last: bool
    execution: ExecutionConfig = ExecutionConfig()

    def add_layers(self, count: int) -> None:
        """Create `count` layers; for `setup`."""
        resnet = self.execution.rematerialised(ResnetBlock)
        transformer = self.execution.rematerialised(Transformer)
        self.resnets = [resnet(self.config, self.width, self.execution) for _ in range(count)]
        if self.heads is not None:
            self.attentions = [
                transformer(self.config, self.heads, self.width, self.execution) for _ in range(count)
            ]

    def run_layer(
        self, i: int, x: FeatureMaps, time: Time, text: TextEmbeddings, edit: AttentionEdit | None
    ) -> FeatureMaps:
        """Apply ResNet block `i` and its transformer."""
        x = self.resnets[i](x, time)
        return x if self.heads is None else self.attentions[i](x, text, edit)


class DownBlock(ResnetTransformerStack):
    """Layers, then a downsampler unless it is the last block."""

    def setup(self):
        self.add_layers(self.config.layers_per_block)
        if not self.last:
            self.downsamplers = [Downsample(self.width, self.execution)]

    def __call__(
        self,
        x: FeatureMaps,
        time: Time,
        text: TextEmbeddings,
        pose: FeatureMaps | None,
        edit: AttentionEdit | None = None,
    ) -> tuple[FeatureMaps, list[FeatureMaps]]:
        """The feature maps, and the skips: one of each layer and one of the downsampler. `pose` is added to
        the output of the last layer."""
        skips = []
        for i in range(len(self.resnets)):
            x = self.run_layer(i, x, time, text, edit)
            if pose is not None and i == len(self.resnets) - 1:
                x = x + pose.astype(x.dtype)
            skips.append(x)
        if not self.last:
            x = self.downsamplers[0](x)
            skips.append(x)
        return x, skips


class MidBlock(nn.Module):
    """ResNet block, transformer, ResNet block."""

    config: UNet3DConfig
    width: int
    heads: int
    execution: ExecutionConfig = ExecutionConfig()

    def setup(self):
        resnet = self.execution.rematerialised(ResnetBlock)
        transformer = self.execution.rematerialised(Transformer)
        self.resnets = [resnet(self.config, self.width, self.execution) for _ in range(2)]
        self.attentions = [transformer(self.config, self.heads, self.width, self.execution)]

    def __call__(
        self, x: FeatureMaps, time: Time, text: TextEmbeddings, edit: AttentionEdit | None = None
    ) -> FeatureMaps:
        x = self.resnets[0](x, time)
        x = self.attentions[0](x, text, edit)
        return self.resnets[1](x, time)


class UpBlock(ResnetTransformerStack):
    """One layer more than a down block, each with a skip; then an upsampler unless it is the last block."""

    def setup(self):
        self.add_layers(self.config.layers_per_block + 1)
        if not self.last:
            self.upsamplers = [Upsample(self.width, self.execution)]

    def __call__(
        self,
        x: FeatureMaps,
        skips: list[FeatureMaps],
        time: Time,
        text: TextEmbeddings,
        edit: AttentionEdit | None = None,
    ) -> FeatureMaps:
        """The feature maps. Each layer pops the last of `skips`, so that the list is empty after the last
        block."""
        for i in range(len(self.resnets)):
            x = self.run_layer(i, jnp.concatenate([x, skips.pop()], axis=-1), time, text, edit)
        return x if self.last else self.upsamplers[0](x)
