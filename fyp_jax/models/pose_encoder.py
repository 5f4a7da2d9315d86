"""The pose encoder: a pose image becomes one feature map for each level of the UNet."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange, reduce
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fyp_jax.compilation_cache import cached
from fyp_jax.models.execution import ExecutionConfig
from fyp_jax.models.resnet import conv3x3
from fyp_jax.models.unet_config import UNet3DConfig
from fyp_jax.types import FeatureMaps

DOWNSCALE = 8
"""Pixels of a pose image per latent, in height and in width."""


class PoseBlock(nn.Module):
    """x + conv1x1(relu(conv3x3(x))), after average pooling with `downsample`, and after a 1x1 convolution
    where the number of channels changes."""

    width: int
    downsample: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h2 w2 d"]:
        if self.downsample:
            x = reduce(x, "b f (h 2) (w 2) c -> b f h w c", "mean")
        if x.shape[-1] != self.width:
            x = nn.Conv(self.width, (1, 1), dtype=self.dtype, name="in_conv")(x)
        hidden = nn.relu(conv3x3(self.width, ExecutionConfig(self.dtype), name="block1")(x))
        return x + nn.Conv(self.width, (1, 1), dtype=self.dtype, name="block2")(hidden)


class PoseEncoder(nn.Module):
    """Two residual blocks for each level of the UNet; `config.block_out_channels` has their channels.

    The input convolution and all biases are initialised to 0. So an untrained encoder gives feature maps of
    zeros and does not change a text-to-image model, but the gradient of the input convolution is not 0.
    """

    config: UNet3DConfig
    dtype: DTypeLike = jnp.float32

    def setup(self):
        widths = self.config.block_out_channels
        self.conv_in = nn.Conv(
            widths[0], (3, 3), padding=1, kernel_init=nn.initializers.zeros, dtype=self.dtype
        )
        self.body = [
            PoseBlock(width, downsample=level > 0 and i == 0, dtype=self.dtype)
            for level, width in enumerate(widths)
            for i in range(2)
        ]

    def __call__(self, pose_images: Float[Array, "b f H W 3"]) -> list[FeatureMaps]:
        """RGB pose images in [0, 1], on black -> feature maps of height H/8, H/16, ...

        H and W are multiples of 8 * 2**(levels - 1).
        """
        # The channel order of PyTorch's pixel_unshuffle: by colour, then by row, then by column.
        x = rearrange(pose_images, "b f (h i) (w j) c -> b f h w (c i j)", i=DOWNSCALE, j=DOWNSCALE)
        x = self.conv_in(x)
        maps = []
        for i, block in enumerate(self.body):
            x = block(x)
            if i % 2:
                maps.append(x)
        return maps


def init_pose_encoder(config: UNet3DConfig, key: jax.Array) -> dict[str, Any]:
    """Newly initialised float32 parameters, with the zeros that `PoseEncoder` describes."""
    side = DOWNSCALE * 2 ** (len(config.block_out_channels) - 1)
    return dict(PoseEncoder(config).init(key, jnp.zeros((1, 1, side, side, 3)))["params"])


@functools.cache
def pose_encoder_shapes(config: UNet3DConfig) -> dict[str, Any]:
    """Nested shapes of the parameters; no parameter is computed."""

    def shapes() -> dict[str, Any]:
        return jax.eval_shape(lambda: init_pose_encoder(config, jax.random.key(0)))

    return cached("pose_encoder_shapes", {"config": str(config)}, shapes)
