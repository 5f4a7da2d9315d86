"""Say where the time of a step on this machine goes, by kind of operation, and what memory it needs.

    python scripts/benchmark.py breakdown                  a denoising step, and PyTorch's image UNet
    python scripts/benchmark.py breakdown --what motion    a training step of the motion stage

Times are what XLA's and PyTorch's own profilers report for each operation, of one step after others to warm
up; they are scaled so that their sum is the time of a step. Sizes are those of the benchmarks `step` and
`motion`. PyTorch's table needs the `torch` extra.
"""

import argparse
import collections
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax

from benchmarks.motion import GIB, compile_step, motion_config, program_sizes
from benchmarks.motion import arguments as motion_arguments
from benchmarks.timing import seconds
from benchmarks.unet import denoising_step, torch_image_unet, torch_inputs
from fyp_jax.convert.pipeline_folder import PipelineFolder

KINDS = (
    ("VAE and text encoder", r"FlaxAutoencoderKL|FlaxCLIP"),
    ("gradient's end and optimizer", r"^(?!.*UNet3D)"),
    ("temporal layers", r"attn_temp|conv_temporal|norm_temp"),
    ("convolutions", r"conv_general_dilated|/conv(\d|_shortcut)?/"),
    ("products of layers", r"(to_\w+|proj|net_\d|linear_\d|time_emb_proj)/dot_general"),
    ("attention", r"attn[12]"),
    ("norms", r"norm"),
)
"""Kinds of our operations, by what XLA says of where in the model an operation is; the first that fits."""
TORCH_KINDS = (
    ("convolutions", r"conv"),
    ("products of layers", r"::(addmm|mm|linear)$"),
    ("attention", r"attention|::bmm|softmax"),
    ("norms", r"norm"),
)
REST = "activations, sums, copies"
LOOPS = re.compile(r"(while|call|conditional)[.\d]*$")
"""Operations whose time is that of others."""
INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = .*op_name=\"([^\"]*)\"", re.MULTILINE)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--what", default="step", choices=["step", "motion"])
    add("--size", default="sd14", choices=["sd14", "mini"])
    add("--clips", type=int, default=2, help="step: clips (a guided step has two)")
    add("--frames", type=int, default=4)
    add("--side", type=int, default=32, help="height and width of the latents")
    add("--no-torch", action="store_true", help="leave PyTorch's image UNet out")
    args = parser.parse_args()
    compiled, call = compiled_motion_step(args) if args.what == "motion" else compiled_denoising_step(args)
    jax.block_until_ready(call())
    print_table(f"our {args.what}, {jax.default_backend()}", seconds(call), by_kind(compiled, call))
    print("GiB: " + "; ".join(f"{size / GIB:.2f} {name}" for name, size in program_sizes(compiled).items()))
    if args.what == "step" and not args.no_torch:
        torch_step(args)


def compiled_denoising_step(args: argparse.Namespace) -> tuple[Any, Callable[[], Any]]:
    folder = PipelineFolder(args.size, parts=())
    denoise, params, latents = denoising_step(folder, args.clips, args.frames, args.side)
    compiled = jax.jit(denoise).lower(params, latents).compile()
    return compiled, lambda: compiled(params, latents)


def compiled_motion_step(args: argparse.Namespace) -> tuple[Any, Callable[[], Any]]:
    """The step of the benchmark `motion`. Each call goes on from the state of the call before."""
    step = compile_step(motion_config(args.size, args.frames, args.side))
    arguments = motion_arguments(step)

    def call() -> Any:
        nonlocal arguments
        state, metrics = step.compiled(*arguments)
        arguments = (state, *arguments[1:])
        return metrics

    return step.compiled, call


def by_kind(compiled: Any, call: Callable[[], Any]) -> dict[str, float]:
    """Seconds of the operations of one call, by kind."""
    places = dict(INSTRUCTION.findall(compiled.as_text()))
    found: dict[str, float] = collections.defaultdict(float)
    for name, duration in profiled(call):
        if not LOOPS.match(name):
            place = places.get(name)
            kinds = (kind for kind, where in KINDS if place is not None and re.search(where, place))
            found[next(kinds, REST)] += duration
    return dict(found)


def profiled(call: Callable[[], Any]) -> Iterator[tuple[str, float]]:
    """Name and seconds of each operation that XLA ran in a call."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(call())
        (file,) = Path(folder).rglob("*.xplane.pb")
        for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
            for line in plane.lines:
                for event in line.events:
                    if "hlo_op" in dict(event.stats):
                        yield event.name, event.duration_ns / 1e9


def torch_step(args: argparse.Namespace) -> None:
    """The same table of PyTorch diffusers' image UNet."""
    import torch

    folder = PipelineFolder(args.size, parts=())
    unet, inputs = torch_image_unet(folder), torch_inputs(folder, args.clips * args.frames, args.side)
    with torch.no_grad():
        unet(*inputs)
        wall = seconds(lambda: unet(*inputs) and None)
        with torch.profiler.profile() as profile:
            unet(*inputs)
    found: dict[str, float] = collections.defaultdict(float)
    for event in profile.key_averages():
        kind = next((kind for kind, where in TORCH_KINDS if re.search(where, event.key)), REST)
        found[kind] += event.self_cpu_time_total / 1e6
    print_table("PyTorch's image UNet", wall, dict(found))


def print_table(title: str, wall: float, found: dict[str, float]) -> None:
    total = sum(found.values())
    print(f"{title}: {wall:.2f} s\n| kind | of the time | s |\n|---|---|---|")
    for kind, spent in sorted(found.items(), key=lambda item: -item[1]):
        print(f"| {kind} | {spent / total:.0%} | {wall * spent / total:.2f} |")


if __name__ == "__main__":
    main()
