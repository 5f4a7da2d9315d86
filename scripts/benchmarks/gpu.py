"""Measure a GPU: sampling and motion training at SD 1.4's size beside PyTorch's image UNet, and attention.

    python scripts/benchmark.py gpu [--out FILE.json]

Each row is a process of its own, one after another. A guided step denoises one clip with and without its
prompt. PyTorch's UNet is that of diffusers: it has no temporal layers, and its frames attend to themselves
alone. `published` is the attention of Follow Your Pose's code, which computes all scores at once. Times are
medians. Memory is what the program needs in all, with its arguments: by XLA, or by PyTorch's allocator.
float32 may use TF32 on both sides. Needs the `torch` extra for the rows of PyTorch.
"""

import argparse
import concurrent.futures
import functools
import json
import multiprocessing
import os
import statistics
import time
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

os.environ.setdefault(
    "XLA_PYTHON_CLIENT_PREALLOCATE", "false"
)  # before JAX starts: PyTorch needs memory, too

import jax
import jax.numpy as jnp

from benchmarks.motion import GIB, program_sizes
from benchmarks.timing import seconds
from benchmarks.unet import torch_image_unet, torch_inputs
from fyp_jax.config import load_config
from fyp_jax.convert.pipeline_folder import PipelineFolder
from fyp_jax.models.attention_kernels.choice import choose_attention
from fyp_jax.pipeline.config import SampleConfig
from fyp_jax.tpu.programs import Program, sampling_programs, training_programs
from fyp_jax.training.config import TrainConfig

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "sd14"
FLOAT32, BFLOAT16 = "float32", "bfloat16"
RANDOM_NUMBERS = 2**20 + 7
MESSAGE = 120
"""Letters of an error that the table shows."""


class Setting(NamedTuple):
    """What all rows share."""

    size: str
    """A bundled folder of sizes: sd14 or mini."""
    frames: int
    side: int
    """Height and width of a clip in pixels."""
    runs: int


class Row(NamedTuple):
    """One line of the table."""

    kind: str
    """A key of MEASURE."""
    dtype: str
    attention: str
    options: tuple[str, ...] = ()
    """More fields of a config, or of PyTorch's rows `gradient` and `compile`."""


class Figures(NamedTuple):
    """What is measured of one program."""

    name: str
    seconds: float
    gib: float
    tflop: float = 0.0
    """Matrix products and convolutions that the model needs."""


ROWS = (
    *(Row("sample", BFLOAT16, name) for name in ("cudnn", "xla", "blockwise")),
    *(Row("sample", FLOAT32, name) for name in ("xla", "blockwise")),
    Row("torch", BFLOAT16, "torch"),
    Row("torch", BFLOAT16, "torch", ("compile",)),
    Row("torch", FLOAT32, "torch"),
    *(Row("train", BFLOAT16, name) for name in ("cudnn", "xla", "blockwise")),
    Row("train", BFLOAT16, "cudnn", ("data.cached_latents=true",)),
    *(Row("train", FLOAT32, name) for name in ("xla", "blockwise")),
    Row("torch", BFLOAT16, "torch", ("gradient",)),
    *(Row("attention", BFLOAT16, name) for name in ("cudnn", "xla", "blockwise", "torch", "published")),
    *(Row("attention", FLOAT32, name) for name in ("xla", "blockwise", "torch", "published")),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--size", default="sd14", choices=["sd14", "mini"])
    add("--frames", type=int, default=8)
    add("--side", type=int, default=512, help="height and width of a clip in pixels")
    add("--runs", type=int, default=7, help="timed runs of each program")
    add("--kinds", nargs="+", default=list(MEASURE), choices=list(MEASURE), help="default: all rows")
    add("--out", type=Path, metavar="FILE", help="write the figures to a JSON file, too")
    args = parser.parse_args()
    setting = Setting(args.size, args.frames, args.side, args.runs)
    rows = [row for row in ROWS if row.kind in args.kinds]
    print(f"{device_name()}; {args.size}, 1 clip of {args.frames} frames of {args.side}x{args.side}")
    print("| program | dtype | attention | ms | TFLOP/s | GiB |\n|---|---|---|---|---|---|")
    found = []
    for row in rows:
        result = measured(row, setting)
        label = f"{row.dtype} | {' '.join((row.attention, *row.options))}"
        if isinstance(result, str):
            print(f"| {row.kind} | {label} | {result} | | |", flush=True)
            continue
        for each in result:
            rate = f"{each.tflop / each.seconds:.0f}" if each.tflop else ""
            print(
                f"| {each.name} | {label} | {1e3 * each.seconds:.2f} | {rate} | {each.gib:.2f} |", flush=True
            )
        found.append(row._asdict() | {"programs": [each._asdict() for each in result]})
    if args.out:
        figures = {"device": device_name(), **setting._asdict(), "jax": jax.__version__, "rows": found}
        args.out.write_text(json.dumps(figures, indent=1) + "\n")


def device_name() -> str:
    return jax.devices()[0].device_kind


def measured(row: Row, setting: Setting) -> list[Figures] | str:
    """The figures of a row, by a process of its own that leaves no memory behind; or why there are none."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as process:
        try:
            return process.submit(MEASURE[row.kind], row, setting).result()
        except Exception as error:  # other rows go on
            return f"{type(error).__name__}: {' '.join(str(error).split())[:MESSAGE]}"


def measure_sample(row: Row, setting: Setting) -> list[Figures]:
    """The programs of sampling, and a clip of 50 steps from the sum of their times."""
    size = (f"num_frames={setting.frames}", f"height={setting.side}", f"width={setting.side}")
    fields = (f"pretrained={setting.size}", "prompt=[any]", "pose.path=dance", "pose.stride=1", *size)
    config = load_config(SampleConfig, CONFIGS / "sample.yaml", [*fields, *shared_fields(row)])
    programs = sampling_programs(config, jax.devices()[:1]).programs
    found = {program.name: (program.runs, measure_program(program, setting.runs)) for program in programs}
    clip = sum(runs * each.seconds for runs, each in found.values())
    tflop = sum(runs * each.tflop for runs, each in found.values())
    largest = max(each.gib for _, each in found.values())
    step = found["denoise"][1]._replace(name="guided step")
    return [step, Figures(f"a clip in {config.num_inference_steps} steps", clip, largest, tflop)]


def measure_train(row: Row, setting: Setting) -> list[Figures]:
    """The training step of the motion stage, with the VAE and the text encoder unless latents are cached."""
    size = (f"data.num_frames={setting.frames}", f"data.height={setting.side}", f"data.width={setting.side}")
    fields = (f"pretrained={setting.size}", "data.batch_size=1", "init_checkpoint=null", *size)
    config = load_config(TrainConfig, CONFIGS / "stage2_motion.yaml", [*fields, *shared_fields(row)])
    (program,) = training_programs(config, jax.devices()[:1]).programs
    name = "motion step" + (", cached latents" if config.data.cached_latents else "")
    return [measure_program(program, setting.runs)._replace(name=name)]


def shared_fields(row: Row) -> tuple[str, ...]:
    frozen = (f"frozen_dtype={row.dtype}",) if row.kind == "train" else ()
    return (f"dtype={row.dtype}", f"attention_implementation={row.attention}", *frozen, *row.options)


def measure_program(program: Program, runs: int) -> Figures:
    """Compile a program, and measure it on random numbers."""
    lowered = program.lower()
    values = jax.tree_util.tree_map_with_path(host_value, lowered.args_info[0])
    found = measure_lowered(lowered, values, runs)
    return found._replace(name=program.name, tflop=program.model_flops / 1e12)


def host_value(path: Any, info: Any) -> Any:
    """Random numbers for weights and activations, which start elsewhere for each name; 1 for integers."""
    if jnp.issubdtype(info.dtype, jax.dtypes.prng_key):
        return jax.random.key(0)
    if not jnp.issubdtype(info.dtype, jnp.floating):
        return np.ones(info.shape, info.dtype)
    start = zlib.crc32(jax.tree_util.keystr(path).encode()) % RANDOM_NUMBERS
    return np.resize(np.roll(random_numbers(), start).astype(info.dtype), info.shape)


@functools.cache
def random_numbers() -> np.ndarray:
    """Numbers that all arrays share, since billions of them would take long."""
    return 0.02 * np.random.default_rng(0).standard_normal(RANDOM_NUMBERS, np.float32)


def measure_lowered(lowered: jax.stages.Lowered, values: Any, runs: int) -> Figures:
    """Compile and time a function with these arguments; those that it donates are copied each time."""
    compiled, infos = lowered.compile(), lowered.args_info[0]
    arguments = jax.tree.map(jnp.asarray, values)
    times = []
    for _ in range(2 + runs):  # two to warm up
        copies = jax.tree.map(lambda x, info: jnp.copy(x) if info.donated else x, arguments, infos)
        jax.block_until_ready(copies)
        times.append(seconds(lambda copies=copies: compiled(*copies)))
    return Figures("", statistics.median(times[2:]), sum(program_sizes(compiled).values()) / GIB)


def measure_torch_unet(row: Row, setting: Setting) -> list[Figures]:
    """diffusers' image UNet on the frames of a guided step, or the gradient of its queries on those of a
    clip."""
    import torch

    folder, gradient = PipelineFolder(setting.size, parts=()), "gradient" in row.options
    dtype, device = torch_setup(row.dtype)
    unet = torch_image_unet(folder).to(device, dtype).requires_grad_(False)
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(gradient and "to_q" in name)
    run: Any = torch.compile(unet) if "compile" in row.options else unet
    images, side = setting.frames * (1 if gradient else 2), setting.side // 8
    inputs = torch_inputs(folder, images, side, device=device, dtype=dtype)

    def step() -> Any:
        with torch.set_grad_enabled(gradient):
            found = run(*inputs).sample
            return found.float().square().mean().backward() if gradient else found

    name = "PyTorch's image UNet, " + ("gradient of its queries" if gradient else "frames of a guided step")
    return [measure_torch(step, name, setting.runs)]


def torch_setup(dtype: str) -> tuple[Any, str]:
    """The dtype and the device of PyTorch; float32 products may use TF32, as JAX's do."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    return getattr(torch, dtype), "cuda" if torch.cuda.is_available() else "cpu"


def measure_torch(step: Callable[[], Any], name: str, runs: int) -> Figures:
    import torch

    cuda, times = torch.cuda.is_available(), []
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(2 + runs):
        start = time.perf_counter()
        step()
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() if cuda else 0
    return Figures(name, statistics.median(times[2:]), peak / GIB)


def measure_attention(row: Row, setting: Setting) -> list[Figures]:
    """Cross-frame attention of the first level of a guided step, forward, and forward with its gradient."""
    tokens, groups, heads, width = (setting.side // 8) ** 2, 2, 8, 40
    tflop = 2 * groups * setting.frames * heads * tokens * 2 * tokens * 2 * width / 1e12
    rng = np.random.default_rng(0)
    frames = (setting.frames, 1, setting.frames, 1, setting.frames)  # queries, keys and values in two parts
    arrays = [rng.standard_normal((groups, count, tokens, heads, width), np.float32) for count in frames]
    if row.attention in ("torch", "published"):
        found = [measure_torch(function, "", setting.runs) for function in torch_attention(row, arrays)]
    else:
        device = jax.devices()[0]
        attend = choose_attention(row.attention, row.dtype, device.platform, device.device_kind)
        parts = tuple(jnp.asarray(x, row.dtype) for x in arrays)

        def forward(q: jax.Array, *kv: jax.Array) -> jax.Array:
            return attend(q, kv[:2], kv[2:])

        def loss(*parts: jax.Array) -> jax.Array:
            return jnp.square(forward(*parts).astype(jnp.float32)).sum()

        functions: tuple[Any, ...] = jax.jit(forward), jax.jit(jax.value_and_grad(loss, range(5)))
        found = [measure_lowered(function.lower(*parts), parts, setting.runs) for function in functions]
    names = "cross-frame attention, first level", "the same with its gradient"
    figures = zip(found, names, (1.0, 3.5), strict=True)  # a gradient has five products more
    return [each._replace(name=name, tflop=factor * tflop) for each, name, factor in figures]


def torch_attention(row: Row, arrays: Sequence[np.ndarray]) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The same in PyTorch: by its fused attention, or as the published code computes it."""
    import torch

    dtype, device = torch_setup(row.dtype)
    q, *parts = (torch.tensor(x, device=device, dtype=dtype, requires_grad=True) for x in arrays)
    frames = q.shape[1]

    def merge(*parts: Any) -> Any:
        """(group, frame, token, head, width) of each part to (group and frame, head, token, width) of all."""
        whole = torch.cat([part.expand(-1, frames, -1, -1, -1) for part in parts], dim=2)
        return whole.flatten(0, 1).transpose(1, 2)

    def attend() -> Any:
        query, key, value = merge(q), merge(*parts[:2]), merge(*parts[2:])
        if row.attention == "torch":
            return torch.nn.functional.scaled_dot_product_attention(query, key, value)
        scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
        return scores.softmax(dim=-1) @ value

    def forward() -> Any:
        with torch.no_grad():
            return attend()

    return forward, lambda: attend().float().square().sum().backward()


MEASURE: dict[str, Callable[[Row, Setting], list[Figures]]] = {
    "sample": measure_sample,
    "train": measure_train,
    "torch": measure_torch_unet,
    "attention": measure_attention,
}


if __name__ == "__main__":
    main()
