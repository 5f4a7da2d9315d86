"""The pose encoder: a skeleton picture becomes one feature map for each level of the UNet."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange, reduce
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fyp_jax.compilation_cache import cached
from fyp_jax.models.resnet import conv3x3
from fyp_jax.models.unet_config import UNet3DConfig
from fyp_jax.types import FeatureMaps

DOWNSCALE = 8
"""Pixels of a skeleton for one latent, in height and in width."""


class PoseBlock(nn.Module):
    """Halves the size if asked to, changes the width where it must, then x + conv1x1(relu(conv3x3(x)))."""

    width: int
    downsample: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h2 w2 d"]:
        if self.downsample:
            x = reduce(x, "b f (h 2) (w 2) c -> b f h w c", "mean")
        if x.shape[-1] != self.width:
            x = nn.Conv(self.width, (1, 1), dtype=self.dtype, name="in_conv")(x)
        hidden = nn.relu(conv3x3(self.width, dtype=self.dtype, name="block1")(x))
        return x + nn.Conv(self.width, (1, 1), dtype=self.dtype, name="block2")(hidden)


class PoseEncoder(nn.Module):
    """Two residual blocks a level, as wide as the UNet's levels (of `config`, only `block_out_channels`).

    The input convolution and all biases start at 0, so that an untrained encoder gives zero maps and
    leaves a text-to-image model as it is, while the gradient reaches the input convolution.
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

    def __call__(self, skeleton: Float[Array, "b f H W 3"]) -> list[FeatureMaps]:
        """RGB skeleton in [0, 1] on black -> maps of height H/8, H/16, ...

        H and W are multiples of 8 times 2 for each level but the first.
        """
        # Colour-major, then row, then column: the channel order of PyTorch's pixel_unshuffle.
        x = rearrange(skeleton, "b f (h i) (w j) c -> b f h w (c i j)", i=DOWNSCALE, j=DOWNSCALE)
        x = self.conv_in(x)
        maps = []
        for i, block in enumerate(self.body):
            x = block(x)
            if i % 2:
                maps.append(x)
        return maps


def init_pose_encoder(config: UNet3DConfig, key: jax.Array) -> dict[str, Any]:
    """Freshly drawn float32 parameters, with the zeros that the class describes."""
    side = DOWNSCALE * 2 ** (len(config.block_out_channels) - 1)
    return dict(PoseEncoder(config).init(key, jnp.zeros((1, 1, side, side, 3)))["params"])


@functools.cache
def pose_encoder_shapes(config: UNet3DConfig) -> dict[str, Any]:
    """Names and shapes of the parameters, without computing them."""

    def shapes() -> dict[str, Any]:
        return jax.eval_shape(lambda: init_pose_encoder(config, jax.random.key(0)))

    return cached("pose_encoder_shapes", {"config": str(config)}, shapes)
