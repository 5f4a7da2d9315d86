"""Compare forms of a 3x3 convolution on this machine, at the sizes of Stable Diffusion 1.4's levels.

    python scripts/benchmark.py convolution [--images 8]     the convolution
    python scripts/benchmark.py convolution --gradient       the gradient of its images

Prints the best time of a few interleaved runs of each form, relative to PyTorch's, and the temporary memory
of its program. Compiler options are those of XLA's CPU backend. Needs the `torch` extra.
"""

import argparse
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

try:
    import torch
    from torch.nn.grad import conv2d_input
except ImportError:
    sys.exit("this benchmark compares with PyTorch: pip install -e '.[torch]'")

from benchmarks.timing import interleaved_times
from fyp_jax.models.convolutions import cpu_convolution

LEVELS = ((32, 320), (16, 640), (8, 1280), (4, 1280))
"""Side of the latents of 256 pixels, and channels, by level."""


def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """XLA's own convolution, channels last: the form of the models on chips."""
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)


def models(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The form of the models on CPUs."""
    return cpu_convolution(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def channels_first(x: jax.Array, kernel: jax.Array) -> jax.Array:
    layout = ("NCHW", "HWIO", "NCHW")
    x = jnp.transpose(x, (0, 3, 1, 2))
    out = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)
    return jnp.transpose(out, (0, 2, 3, 1))


def nine_products(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The sum of a matrix product for each pixel of the window."""
    return sum(windows[..., :] @ kernel[i // 3, i % 3] for i, windows in enumerate(shifted(x)))  # pyright: ignore


def one_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """One matrix product with the windows, which are written out first."""
    windows = jnp.concatenate(shifted(x), axis=-1)
    return windows @ kernel.reshape(-1, kernel.shape[-1])


def one_product_an_image(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same image by image, so that the windows of one stay in a cache."""
    return jax.lax.map(lambda image: one_product(image[None], kernel)[0], x)


def shifted(x: jax.Array) -> list[jax.Array]:
    """The images moved by each pixel of the window, with zeros outside."""
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]


def images_gradient(form: Any) -> Any:
    """The function (gradient of the result, kernel) -> gradient of the images, which have the same shape."""

    def gradient(result: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.linear_transpose(lambda images: form(images, kernel), result)(result)[0]

    return gradient


class Form(NamedTuple):
    """A way to compute a convolution."""

    function: Any
    options: dict[str, Any]
    """Compiler options."""


FORMS = {
    "the models, on CPUs": Form(models, {}),
    "XLA's convolution": Form(plain, {}),
    "the same, fast math": Form(plain, {"xla_cpu_enable_fast_math": True}),
    "the same, without XNNPACK": Form(plain, {"xla_cpu_use_xnnpack": False}),
    "the same, with oneDNN": Form(plain, {"xla_cpu_use_onednn": True}),
    "channels first": Form(channels_first, {}),
    "nine matrix products": Form(nine_products, {}),
    "one product, windows written out": Form(one_product, {}),
    "one product an image": Form(one_product_an_image, {}),
}
TORCH = "PyTorch"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=8, help="default: 8")
    parser.add_argument("--runs", type=int, default=5, help="timed runs of each (default: 5)")
    parser.add_argument("--gradient", action="store_true", help="time the gradient of the images instead")
    args = parser.parse_args()

    table: dict[str, list[str]] = {name: [] for name in (*FORMS, TORCH)}
    rng = np.random.default_rng(0)
    for side, channels in LEVELS:
        x = rng.standard_normal((args.images, side, side, channels), np.float32)
        kernel = rng.standard_normal((3, 3, channels, channels), np.float32) / 30
        times, memory = level(x, kernel, args.runs, args.gradient)
        best = {name: min(each) for name, each in times.items()}
        for name in table:
            size = f", {memory[name] / 2**20:.0f} MiB" if name in memory else ""
            table[name].append(f"{best[name] / best[TORCH]:.2f}{size}")
        flops = 2 * x.size * 9 * channels
        table[TORCH][-1] += f" ({flops / best[TORCH] / 1e9:.0f} GFLOP/s)"
    sides = " | ".join(f"{side}x{side}, {channels} channels" for side, channels in LEVELS)
    what = ", gradient of the images" if args.gradient else ""
    print(f"{args.images} images, float32{what}\n| | {sides} |\n|{'---|' * (1 + len(LEVELS))}")
    for name, cells in table.items():
        print(f"| {name} | {' | '.join(cells)} |")


def level(
    x: np.ndarray, kernel: np.ndarray, runs: int, gradient: bool
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Times of all forms, which compute the same, and the temporary memory of ours. With `gradient`, `x` is
    the gradient of a convolution's result, and the forms give that of its images."""
    arrays = jnp.asarray(x), jnp.asarray(kernel)
    programs = {
        name: jax.jit(images_gradient(form.function) if gradient else form.function)
        .lower(*arrays)
        .compile(compiler_options=form.options)
        for name, form in FORMS.items()
    }
    images = torch.tensor(x.transpose(0, 3, 1, 2).copy())
    weights = torch.tensor(kernel.transpose(3, 2, 0, 1).copy())

    def torch_form() -> Any:
        if gradient:
            return conv2d_input(images.shape, weights, images, padding=1)
        return torch.nn.functional.conv2d(images, weights, padding=1)

    expected = torch_form().numpy().transpose(0, 2, 3, 1)
    for name, program in programs.items():
        np.testing.assert_allclose(program(*arrays), expected, atol=2e-3, err_msg=name)
    calls: dict[str, Any] = {name: lambda f=f: f(*arrays) for name, f in programs.items()}
    calls[TORCH] = lambda: torch_form() is None
    times = interleaved_times(calls, runs)
    analyses: dict[str, Any] = {name: program.memory_analysis() for name, program in programs.items()}
    return times, {name: analysis.temp_size_in_bytes for name, analysis in analyses.items()}


if __name__ == "__main__":
    main()
