"""Clips per second of the data loader, compared with PyAV decoding of the same frames in one process.

    python scripts/benchmark.py data [--records FOLDER]

The baseline opens the container, decodes from its start to the last frame of the window, converts the frames
of the window to RGB arrays, and scales and crops them as the loader does (or not). The loader starts decoding
at the keyframe before the window and also makes batches of floats. The ways take turns, and no worker runs
during another way's turn. Compare the ratios rather than the times.
"""

import argparse
import dataclasses
import io
import os
from itertools import islice
from statistics import median

import av
import numpy as np

from benchmarks.timing import seconds
from fyp_jax.data.config import DataConfig
from fyp_jax.data.datasets import open_records
from fyp_jax.data.decoding import Record, sample_window
from fyp_jax.data.example_source import ExampleSource, RecordSource
from fyp_jax.data.loader import Loader
from fyp_jax.media.images import Frames, resize_center_crop

FRAMES, FPS, HEIGHT, WIDTH = 256, 30, 360, 640


class SyntheticVideos:
    """Records in memory: a moving texture in H.264, with B-frames and a keyframe every 2 seconds."""

    kind, fingerprint = "captioned_videos", "synthetic"

    def __init__(self, count: int):
        self.videos = [synthetic_video(seed) for seed in range(count)]

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> Record:
        captions = {"frame": np.zeros(1, np.int64), "text": ["a texture"]}
        return {"name": "synthetic", "video": self.videos[index], "frames": FRAMES, "captions": captions}


def synthetic_video(seed: int, frames: int = FRAMES, height: int = HEIGHT, width: int = WIDTH) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (1, height // 4, width // 4, 3)).astype(np.uint8)
    texture, out = resize_center_crop(coarse, 2 * height, 2 * width)[0], io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"g": str(2 * FPS), "preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for frame in range(frames):
            x, y = frame % width, round(height / 2 * (1 + np.sin(frame / 40)))
            image = np.ascontiguousarray(texture[y : y + height, x : x + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return out.getvalue()


def decode_baseline(data: bytes, window: range) -> Frames:
    with av.open(io.BytesIO(data), "r") as container:
        frames = enumerate(islice(container.decode(video=0), window[-1] + 1))
        return np.stack([frame.to_ndarray(format="rgb24") for i, frame in frames if i in window])


def sampled_clips(source: ExampleSource, steps: range) -> list[tuple[bytes, range]]:
    """For each example of these batches: the video file, and the frames that the loader takes from it."""
    config, clips = source.config, []
    for index in range(steps[0] * config.batch_size, (steps[-1] + 1) * config.batch_size):
        spec = source.spec(index)
        record = source.records[spec.record_index]
        size = {
            "video_length": int(record["frames"]),
            "num_frames": config.num_frames,
            "stride": config.stride,
        }
        clips.append((record["video"], sample_window(spec.rng, record["name"], **size)))
    return clips


def benchmark(records: RecordSource, config: DataConfig, batches: int, runs: int) -> dict[str, list[float]]:
    """Seconds for a number of batches, by way, one value per run. Each run has other clips."""
    durations: dict[str, list[float]] = {}
    rows, tokenize = range(config.batch_size), lambda _: np.zeros(77, np.int32)
    for run in range(runs):
        steps = range(1 + run * batches, 1 + (run + 1) * batches)
        clips = sampled_clips(ExampleSource(records, config, seed=0), steps)
        for name, finish in (
            ("baseline", lambda clip: resize_center_crop(clip, config.height, config.width)),
            ("baseline, not scaled", lambda clip: clip),
        ):
            decode_all = lambda finish=finish: [finish(decode_baseline(*clip)) for clip in clips]  # noqa: B023, E731
            durations.setdefault(name, []).append(seconds(decode_all))
        for workers in sorted({0, config.workers}):
            with Loader(
                records, dataclasses.replace(config, workers=workers), tokenize, 0, rows, steps[0] - 1
            ) as loader:
                next(loader)  # starts the workers, which then have hardly a batch in store
                load_all = lambda loader=loader: [next(loader) for _ in steps]  # noqa: B023, E731
                durations.setdefault(f"loader, {workers} workers", []).append(seconds(load_all))
    return durations


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", help="folder of captioned videos (default: synthetic ones)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="default: one per core")
    parser.add_argument("--side", type=int, default=256, help="pixels of the clips (default: 256)")
    parser.add_argument("--runs", type=int, default=5, help="times are medians of these (default: 5)")
    args = parser.parse_args()

    records = open_records(args.records) if args.records else SyntheticVideos(8)
    config = DataConfig(args.records or "synthetic", height=args.side, width=args.side, workers=args.workers)
    batches = 4
    durations = benchmark(records, config, batches, args.runs)
    print(
        f"{config.num_frames} frames, stride {config.stride}, {args.side}x{args.side}, {os.cpu_count()} cores"
    )
    for name, times in durations.items():
        ratios = [baseline / other for baseline, other in zip(durations["baseline"], times, strict=True)]
        print(
            f"{name:20}{batches * config.batch_size / median(times):7.1f} clips/s, "
            f"{median(ratios):.2f} x baseline ({min(ratios):.2f} to {max(ratios):.2f})"
        )
