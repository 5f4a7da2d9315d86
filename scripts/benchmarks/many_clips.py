"""Throughput of batches of clips: devices, and clips that each device makes at a time.

    python scripts/benchmark.py many_clips [--devices 8] [--batch-sizes 1 2 4] [--steps 2] [--runs 3]

The bundled model makes clips of 8 frames, as sample.py --prompts makes them; without a TPU or a GPU, on the
devices into which XLA divides the CPU. The baseline is one clip after another on one device. Files are not
written, and compilation does not count. A time is the median of the runs, which are interleaved.
"""

import argparse
import dataclasses
import functools
import statistics
from collections.abc import Callable
from typing import Any

import jax

from benchmarks.timing import interleaved_times
from fyp_jax.pipeline.clip_batches import BatchSampler, ClipRequest
from fyp_jax.pipeline.pipeline import FollowYourPosePipeline
from fyp_jax.pose.loading import load_pose


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--devices", type=int, default=8, metavar="N", help="devices of a batch (%(default)s)")
    add("--batch-sizes", type=int, nargs="+", default=[1, 2, 4], help="clips of a device (1 2 4)")
    add("--steps", type=int, default=2, help="num_inference_steps (%(default)s)")
    add("--runs", type=int, default=3, help="runs of each (%(default)s)")
    args = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", args.devices)

    pipeline = FollowYourPosePipeline.from_pretrained("mini")
    sampling = dataclasses.replace(pipeline.defaults, num_inference_steps=args.steps)
    size = {name: getattr(sampling, name) for name in ("num_frames", "height", "width")}
    pose = load_pose("dance", **size, stride=5, start=0)

    def request(seed: int) -> ClipRequest:
        return ClipRequest("A robot, on the beach", pose, dataclasses.replace(sampling, seed=seed))

    def alone() -> Any:
        return pipeline(*request(0)).frames

    def batch(sampler: BatchSampler, batch_size: int) -> Any:
        count = sampler.programs.devices.size * batch_size
        return [output.frames for output in sampler([request(seed) for seed in range(count)], batch_size)]

    cases: dict[tuple[int, int], Callable[[], Any]] = {}
    for devices in dict.fromkeys((1, args.devices)):
        sampler = BatchSampler(pipeline, jax.devices()[:devices])
        cases |= {(devices, size): functools.partial(batch, sampler, size) for size in args.batch_sizes}
    names = {f"{devices} {size}": function for (devices, size), function in cases.items()}
    times = interleaved_times({"alone": alone, **names}, args.runs)
    one = statistics.median(times["alone"])
    print(
        f"{size_of(sampling)}, {args.steps} steps; one clip after another on one device: {one:.2f} s a clip\n"
    )
    print("| devices | clips a device | clips a second, relative to one after another |\n|---|---|---|")
    for devices, batch_size in cases:
        clips = devices * batch_size
        ratios = [
            clips * t / own for t, own in zip(times["alone"], times[f"{devices} {batch_size}"], strict=True)
        ]
        middle = statistics.median(ratios)
        print(f"| {devices} | {batch_size} | {middle:.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |")


def size_of(sampling: Any) -> str:
    return f"{sampling.num_frames} frames of {sampling.height}x{sampling.width}"
