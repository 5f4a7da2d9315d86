"""How layers are computed on a device: their forms, which give the same numbers up to rounding."""

from typing import NamedTuple

from jax.typing import DTypeLike

from fyp_jax.models.attention_functions import AttentionFn, blockwise_attention
from fyp_jax.models.attention_kernels.choice import choose_attention
from fyp_jax.models.convolutions import (
    ConvolutionFn,
    cpu_convolution,
    cpu_upsampled_convolution,
    xla_convolution,
)


class LayerForms(NamedTuple):
    """A form for each kind of layer that has several."""

    attention: AttentionFn = blockwise_attention
    """How each attention layer computes its scores."""
    convolution: ConvolutionFn = xla_convolution
    """How the UNet computes a convolution over height and width."""
    upsampled_convolution: ConvolutionFn | None = None
    """How it doubles height and width and convolves the result; None: one after the other."""


DEFAULT_FORMS = LayerForms()
"""Forms that every platform has."""


def choose_layer_forms(
    attention_implementation: str, dtype: DTypeLike, platform: str, device_kind: str
) -> LayerForms:
    """The forms for a JAX device of this platform and kind: `choose_attention`, and convolutions by platform.

    Raises UserError where the platform cannot run the attention that was asked for.
    """
    attention = choose_attention(attention_implementation, dtype, platform, device_kind)
    if platform == "cpu":
        return LayerForms(attention, cpu_convolution, cpu_upsampled_convolution)
    return LayerForms(attention)
