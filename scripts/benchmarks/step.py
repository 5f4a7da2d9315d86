"""Compare a denoising step with PyTorch diffusers' image UNet on the same frames, and find what limits it.

    python scripts/benchmark.py step

The runs are interleaved, since the speed of a shared machine drifts: quote ratios. Needs the `torch` extra.
"""

import argparse
import logging
import statistics
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

try:
    import torch
except ImportError:
    sys.exit("this benchmark compares with PyTorch: pip install -e '.[torch]'")

from benchmarks.timing import interleaved_times, seconds
from benchmarks.unet import denoising_step, torch_image_unet, torch_inputs
from fyp_jax.convert.pipeline_folder import PipelineFolder
from fyp_jax.tpu.flops import Product, count_products, total_flops

MATRIX = 4096


def convolution_pair(product: Product) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The same 3x3 convolution in XLA and in PyTorch, each in its own layout."""
    frames, height, width, inputs = product.lhs
    x, w = jnp.ones(product.lhs), jnp.ones(product.rhs)
    run = jax.jit(
        lambda x, w: jax.lax.conv_general_dilated(
            x, w, product.strides, [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    )
    tx, tw = torch.ones(frames, inputs, height, width), torch.ones(product.rhs[3], inputs, 3, 3)
    stride = product.strides[0]
    return lambda: run(x, w), lambda: torch.nn.functional.conv2d(tx, tw, stride=stride, padding=1)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="sd14", choices=["sd14", "mini"])
    parser.add_argument("--clips", type=int, default=2)
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--side", type=int, default=32, help="height and width of the latents")
    parser.add_argument("--runs", type=int, default=5, help="timed runs; times are medians")
    args = parser.parse_args()

    logging.getLogger("diffusers.models.embeddings_flax").setLevel(logging.ERROR)  # it logs at import
    folder = PipelineFolder(args.size, parts=())
    denoise, params, latents = denoising_step(folder, args.clips, args.frames, args.side)
    ours, theirs = jax.jit(denoise), torch_image_unet(folder)
    inputs = torch_inputs(folder, args.clips * args.frames, args.side)
    square = jnp.ones((MATRIX, MATRIX))
    products = count_products(denoise, params, latents)
    convolutions = {p: n for p, n in products.items() if p.rhs[:2] == (3, 3)}
    pairs = [(times, *convolution_pair(product)) for product, times in convolutions.items()]
    functions = {
        "step": lambda: ours(params, latents),
        "torch": lambda: theirs(*inputs),
        "matrix": lambda: square @ square,
    }
    with torch.no_grad():
        times = interleaved_times(functions, args.runs)
        conv = [sum(n * min(seconds(pair[i]) for _ in range(3)) for n, *pair in pairs) for i in range(2)]

    step, torch_step, matrix = (statistics.median(times[name]) for name in functions)
    ratios = [a / b for a, b in zip(times["step"], times["torch"], strict=True)]
    flops, peak = total_flops(products), 2 * MATRIX**3 / matrix
    conv_flops = total_flops(convolutions)
    gflops = lambda count, time: f"{count / time / 1e9:.0f} GFLOP/s"  # noqa: E731
    print(f"{args.size}, {args.clips} x {args.frames} frames of {args.side}x{args.side} latents, float32")
    for name, value in (
        ("one denoising step", f"{step:.2f} s on {jax.default_backend()}, {gflops(flops, step)}"),
        ("PyTorch's image UNet", f"{torch_step:.2f} s with {torch.get_num_threads()} threads"),
        ("ratio", f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"),
        ("FLOPs of our step", f"{flops / 1e12:.3f} T, {conv_flops / flops:.0%} in XLA's 3x3 convolutions"),
        ("matrix product", f"{gflops(2 * MATRIX**3, matrix)} at {MATRIX} x {MATRIX}"),
        ("fraction of that peak", f"{flops / step / peak:.0%}"),
        ("these, XLA", f"{conv[0]:.2f} s alone, best of 3, {gflops(conv_flops, conv[0])}"),
        ("these, PyTorch", f"{conv[1]:.2f} s alone, best of 3, {gflops(conv_flops, conv[1])}"),
    ):
        print(f"{name:24}{value}")
