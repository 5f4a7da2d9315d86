"""Convolutional layers of the UNet. Convolutions act on each frame, GroupNorm on all frames of a clip."""

import flax.linen as nn
from einops import repeat
from jaxtyping import Array, Float

from fyp_jax.models.convolutions import ConvolutionFn
from fyp_jax.models.execution import DEFAULT, ExecutionConfig
from fyp_jax.models.unet_config import UNet3DConfig


def conv3x3(
    width: int,
    execution: ExecutionConfig = DEFAULT,
    stride: int = 1,
    name: str | None = None,
    form: ConvolutionFn | None = None,
) -> nn.Conv:
    """A 3x3 convolution with one pixel of zeros on each side, as in PyTorch at any stride. SAME would pad
    differently at stride 2. `form` takes the place of the form that `execution` has."""
    form, dtype = form or execution.forms.convolution, execution.dtype
    return nn.Conv(
        width, (3, 3), strides=stride, padding=1, dtype=dtype, conv_general_dilated=form, name=name
    )


def conv1x1(width: int, execution: ExecutionConfig = DEFAULT, name: str | None = None) -> nn.Conv:
    """A linear map of the channels of each pixel, as a convolution."""
    form, dtype = execution.forms.convolution, execution.dtype
    return nn.Conv(width, (1, 1), dtype=dtype, conv_general_dilated=form, name=name)


def video_group_norm(
    config: UNet3DConfig, execution: ExecutionConfig = DEFAULT, name: str | None = None
) -> nn.GroupNorm:
    """GroupNorm with one mean and variance for *all frames* of a clip. The GroupNorm of a transformer has one
    for each frame."""
    return nn.GroupNorm(
        config.norm_num_groups,
        epsilon=config.norm_eps,
        dtype=execution.dtype,
        axis_name=execution.frame_axis,
        name=name,
    )


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions, each after GroupNorm and SiLU, with the timestep added in between; and a
    shortcut."""

    config: UNet3DConfig
    width: int
    execution: ExecutionConfig = ExecutionConfig()

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"], time: Float[Array, "b t"]) -> Float[Array, "b f h w d"]:
        execution = self.execution
        hidden = conv3x3(self.width, execution, name="conv1")(self._norm_and_activate("norm1", x))
        shift = nn.Dense(self.width, dtype=execution.dtype, name="time_emb_proj")(nn.silu(time))
        hidden = hidden + shift[:, None, None, None]
        hidden = conv3x3(self.width, execution, name="conv2")(self._norm_and_activate("norm2", hidden))
        if x.shape[-1] != self.width:
            x = conv1x1(self.width, execution, name="conv_shortcut")(x)
        return x + hidden

    def _norm_and_activate(self, name: str, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c"]:
        return nn.silu(video_group_norm(self.config, self.execution, name)(x))


class Downsample(nn.Module):
    """Halves height and width by a 3x3 convolution of stride 2."""

    width: int
    execution: ExecutionConfig = ExecutionConfig()

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h2 w2 c"]:
        return conv3x3(self.width, self.execution, stride=2, name="conv")(x)


class Upsample(nn.Module):
    """Doubles height and width by nearest neighbour, then applies a 3x3 convolution."""

    width: int
    execution: ExecutionConfig = ExecutionConfig()

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h2 w2 c"]:
        form = self.execution.forms.upsampled_convolution
        if form is None:
            x = repeat(x, "b f h w c -> b f (h 2) (w 2) c")
        return conv3x3(self.width, self.execution, name="conv", form=form)(x)
