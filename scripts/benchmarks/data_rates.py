"""Seconds of a core that an item takes to become a record, and a clip to be loaded; and their bytes.

    python scripts/benchmark.py data_rates --config configs/sd14/stage2_motion.yaml --json data.json

scripts/plan_run.py reads the JSON. Without other options the items are synthetic. --source DIR takes a folder
of yours, as prepare_data.py reads it, and data.path=DIR records or cached latents that are there.

Items become records in one process, and clips are loaded in one. The seconds are its CPU time, over all of
its threads, so other programs on the machine matter little. Texts are not tokenized. The first clip, which
opens the records, is not counted.
"""

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from benchmarks.data import FPS, synthetic_video
from fyp_jax.config import load_config, make_parser
from fyp_jax.console import run_console
from fyp_jax.data.datasets import open_records
from fyp_jax.data.ingest.ingest import ingest
from fyp_jax.data.latents import LatentSource, open_latents
from fyp_jax.data.loader import Loader
from fyp_jax.errors import UserError, wrap_write_errors
from fyp_jax.media.images import resize_center_crop
from fyp_jax.pose.skeleton import draw_skeleton
from fyp_jax.synthetic.scenes import scene_keypoints, training_scene
from fyp_jax.tpu.plan_inputs import DATA_BENCHMARK, DATA_FIELDS
from fyp_jax.training.config import TrainConfig
from fyp_jax.training.stages import check_kind, get_stage

VIDEOS, IMAGES = "captioned_videos", "pose_images"


def main() -> None:
    run_console(measure)


def parse() -> tuple[TrainConfig, argparse.Namespace]:
    """The config and the options of this process. Raises UserError."""
    parser = make_parser(TrainConfig, __doc__)
    add = parser.add_argument
    add("--source", type=Path, metavar="DIR", help="folder of videos or images (default: synthetic ones)")
    add("--items", type=int, default=4, metavar="N", help="synthetic items (%(default)s)")
    add("--seconds", type=float, default=13.4, metavar="S", help="of a synthetic video (%(default)s)")
    add(
        "--size",
        type=int,
        nargs=2,
        default=(1280, 720),
        metavar=("W", "H"),
        help="of synthetic items (1280 720)",
    )
    add("--batches", type=int, default=16, metavar="N", help="clips to load in each run (%(default)s)")
    add("--runs", type=int, default=3, metavar="N", help="figures are medians of these (%(default)s)")
    add("--json", type=Path, metavar="FILE", help="write the figures to FILE, for plan_run.py")
    args = parser.parse_intermixed_args()
    if args.config is None:
        parser.error("give --config FILE, the config of the run")
    if min(args.items, args.batches, args.runs) < 1 or min(args.size) < 64 or args.seconds * FPS < 2:
        raise UserError("--items, --batches, --runs are at least 1, --size 64 64, and a video has two frames")
    config = load_config(TrainConfig, args.config, args.overrides)
    config.check()
    if config.data.path is not None and args.source:
        raise UserError(f"data.path={config.data.path} and --source {args.source} exclude each other")
    if config.data.cached_latents and config.data.path is None:
        raise UserError("data.cached_latents=true: give data.path=DIR, the cache, which is only loaded")
    if (kind := get_stage(config.stage).dataset) not in (VIDEOS, IMAGES):
        raise UserError(f"stage={config.stage} trains on {kind}, not on records")
    return config, args


def measure() -> None:
    """Run the benchmark on the arguments of this process. Raises UserError."""
    config, args = parse()
    kind, prepare = get_stage(config.stage).dataset, []
    with tempfile.TemporaryDirectory() as folder:
        source = config.data.path or str(args.source or synthetic_name(kind, args))
        if config.data.path is None:
            items = args.source or write_items(kind, args, Path(folder) / "source")
            path, prepare = prepare_records(kind, items, Path(folder), args.runs)
            config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=path))
        records: Any = (open_latents if config.data.cached_latents else open_records)(config.data.source)
        check_kind(records.kind, get_stage(config.stage), source)
        load = load_seconds(records, config, args.batches, args.runs)
        figures = {
            "benchmark": DATA_BENCHMARK,
            "source": source,
            "kind": kind,
            **sizes(records, config),
            "load_seconds": statistics.median(load),
            "load_seconds_range": [min(load), max(load)],
            "prepare_seconds": statistics.median(prepare) if prepare else None,
            "prepare_seconds_range": [min(prepare), max(prepare)] if prepare else None,
            **{name: getattr(config.data, name) for name in DATA_FIELDS},
        }
    data = config.data
    print(
        f"{source}: {len(records)} records; clips of {data.num_frames} frames of {data.height}x{data.width}"
    )
    for name, seconds in (("loading a clip", load), ("preparing an item", prepare)):
        if seconds:
            middle = statistics.median(seconds)
            print(
                f"{name:18}{middle:8.3f} s of a core ({min(seconds):.3f} to {max(seconds):.3f}), "
                f"{1 / middle:.2f} a second and core"
            )
    print(f"a record has {figures['bytes_per_item']:,.0f} bytes and {figures['frames_per_item']:.4g} frames")
    if args.json:
        with wrap_write_errors(args.json):
            args.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def prepare_records(kind: str, items: Path, folder: Path, runs: int) -> tuple[str, list[float]]:
    """A folder with the records of all items, and for each run the seconds of a core that an item took."""
    path, durations = "", []
    for run in range(runs):
        began = time.process_time()
        report = ingest(kind, items, folder / f"records{run}")
        durations.append((time.process_time() - began) / (report.records + len(report.rejected)))
        path = str(report.folder)
    return path, durations


def load_seconds(records: Any, config: TrainConfig, clips: int, runs: int) -> list[float]:
    """Seconds of a core for a clip of a batch of one, one value for each run. Each run has other clips."""
    data = dataclasses.replace(config.data, batch_size=1, workers=0)
    tokenize: Callable[[str], Any] = lambda _: np.zeros(77, np.int32)  # noqa: E731
    with_pose, durations = get_stage(config.stage).uses_pose, []
    with Loader(records, data, tokenize, config.seed, range(1), with_pose=with_pose) as loader:
        next(loader)
        for _ in range(runs):
            began = time.process_time()
            for _ in range(clips):
                next(loader)
            durations.append((time.process_time() - began) / clips)
    return durations


def sizes(records: Any, config: TrainConfig) -> dict[str, float]:
    """Frames and bytes of a record on average, and bytes that are read for a clip."""
    if isinstance(records, LatentSource):
        size = records.disk_size
        frame = size.total / max(size.frames, 1)
        frames = size.frames / len(records)
        load = frame * config.data.num_frames
        return {"frames_per_item": frames, "bytes_per_item": size.total / len(records), "load_bytes": load}
    found = [records[index] for index in range(min(len(records), 256))]
    frames = statistics.mean(float(record.get("frames", 1)) for record in found)
    files = [sum(len(x) for x in record.values() if isinstance(x, bytes)) for record in found]
    mean = statistics.mean(files)
    return {"frames_per_item": frames, "bytes_per_item": mean, "load_bytes": mean}


def synthetic_name(kind: str, args: argparse.Namespace) -> str:
    width, height = args.size
    what = f"videos of {args.seconds:g} s at {FPS} frames a second" if kind == VIDEOS else "pictures"
    return f"synthetic {what}, {width}x{height}"


def write_items(kind: str, args: argparse.Namespace, folder: Path) -> Path:
    """A folder of synthetic videos with captions, or of pictures with skeletons and captions."""
    folder.mkdir()
    width, height = args.size
    for seed in range(args.items):
        (folder / f"{seed}.txt").write_text("a texture", encoding="utf-8")
        if kind == VIDEOS:
            video = synthetic_video(seed, round(args.seconds * FPS), height, width)
            (folder / f"{seed}.mp4").write_bytes(video)
            continue
        coarse = (
            np.random.default_rng(seed).integers(0, 256, (1, height // 4, width // 4, 3)).astype(np.uint8)
        )
        picture = resize_center_crop(coarse, height, width)[0]
        PIL.Image.fromarray(picture).save(folder / f"{seed}.jpg", quality=90)
        joints = scene_keypoints(training_scene(seed), range(1), min(height, width))[0]
        PIL.Image.fromarray(draw_skeleton(joints, height, width)).save(folder / f"{seed}.skeleton.png")
    return folder
