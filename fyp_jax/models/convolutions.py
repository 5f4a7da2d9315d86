"""Forms of a convolution. Each is a `ConvolutionFn`, and `ExecutionConfig` chooses one."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from jaxtyping import Array, Float

ConvolutionFn = Callable[..., Array]
"""What `flax.linen.Conv` takes as `conv_general_dilated`: the arguments of `jax.lax.conv_general_dilated`."""

xla_convolution: ConvolutionFn = jax.lax.conv_general_dilated

LARGE_KERNEL = 5
"""From a kernel on that has so many times the numbers of input and output together, one product is faster on
a CPU (docs/benchmarks.md)."""


def cpu_convolution(
    x: Float[Array, "n h w c"],
    kernel: Float[Array, "kh kw c d"],
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] = (1, 1),
    rhs_dilation: Sequence[int] = (1, 1),
    **options: Any,
) -> Float[Array, "n h2 w2 d"]:
    """A convolution, channels last, as one matrix product where its kernel is large or of a single pixel.

    For a kernel that is large beside the images, XLA's CPU backend is far from the speed of a product. For
    the gradient it also writes the kernel anew, mirrored and with its channels exchanged, which can take
    longer than the convolution itself. The product reads the kernel as it is. All other convolutions are
    XLA's.
    """
    window, (channels, features) = kernel.shape[:2], kernel.shape[2:]
    if isinstance(padding, str):
        padding = jax.lax.padtype_to_pads(x.shape[1:3], window, window_strides, padding)
    sides = zip(x.shape[1:3], padding, window, window_strides, strict=True)
    height, width = ((side + sum(pad) - size) // stride + 1 for side, pad, size, stride in sides)
    is_plain = {*lhs_dilation, *rhs_dilation, options.get("feature_group_count", 1)} == {1}
    if not is_plain or not (_is_large(kernel, len(x) * height * width) or math.prod(window) == 1):
        dilations = {"lhs_dilation": lhs_dilation, "rhs_dilation": rhs_dilation}
        return xla_convolution(x, kernel, window_strides, padding, **dilations, **options)
    padded, (down, right) = jnp.pad(x, ((0, 0), *padding, (0, 0))), window_strides
    moved = [
        padded[:, i : i + (height - 1) * down + 1 : down, j : j + (width - 1) * right + 1 : right]
        for i in range(window[0])
        for j in range(window[1])
    ]
    windows = jnp.concatenate(moved, axis=-1).reshape(-1, math.prod(window) * channels)
    return (windows @ kernel.reshape(-1, features)).reshape(len(x), height, width, features)


def cpu_upsampled_convolution(
    x: Float[Array, "n h w c"], kernel: Float[Array, "3 3 c d"], *_: Any, **options: Any
) -> Float[Array, "n h2 w2 d"]:
    """Height and width are doubled by nearest neighbour; then the convolution, with one pixel of zeros on
    each side, at stride 1.

    In a doubled image the nine pixels of a window have four values. So each of the four phases of the result
    (even and odd rows and columns) is a convolution of the small image by 2x2 sums of the kernel, which needs
    4/9 of the products. A large kernel is not summed, since that takes longer than it saves.
    """
    height, width = x.shape[1:3]
    if _is_large(kernel, len(x) * 4 * height * width):
        doubled = repeat(x, "n h w c -> n (h 2) (w 2) c")
        return cpu_convolution(doubled, kernel, (1, 1), [(1, 1)] * 2, **options)
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    phases = []
    for i, rows in enumerate(_sums_of_phases(kernel)):
        for j, columns in enumerate(_sums_of_phases(rows.swapaxes(0, 1))):
            part = padded[:, i : i + height + 1, j : j + width + 1]
            phases.append(cpu_convolution(part, columns.swapaxes(0, 1), (1, 1), [(0, 0)] * 2, **options))
    return rearrange(jnp.stack(phases), "(i j) n h w d -> n (h i) (w j) d", i=2)


def _sums_of_phases(kernel: Float[Array, "3 ..."]) -> tuple[Float[Array, "2 ..."], Float[Array, "2 ..."]]:
    """What an even row of a doubled image and what an odd one read from two rows of the small one."""
    above, here, below = kernel
    return jnp.stack([above, here + below]), jnp.stack([above + here, below])


def _is_large(kernel: Float[Array, "kh kw c d"], pixels: int) -> bool:
    """Whether a kernel is large beside so many pixels, over all images, of its result."""
    return kernel.size >= LARGE_KERNEL * pixels * sum(kernel.shape[2:])
