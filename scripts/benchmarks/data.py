"""Clips a second of the data loader, beside plain PyAV decoding of the same frames in one process.

    python scripts/benchmark.py data [--records FOLDER]

Plain: open the container, decode from its start to the last frame needed, make those needed RGB arrays, and
scale and crop them as the loader does (or not). The loader begins at the keyframe before the first of them,
and goes on to batches of floats. All in turns, no worker running in another's turn; quote ratios.
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
from fyp_jax.data.datasets import open_records
from fyp_jax.data.decoding import Record, random_window
from fyp_jax.data.loader import DataConfig, ExampleSource, Loader, RecordSource
from fyp_jax.media.images import Frames, resize_center_crop

FRAMES, FPS, HEIGHT, WIDTH = 256, 30, 360, 640


class MadeVideos:
    """Records in memory: a texture that moves, H.264 with B-frames and a keyframe every 2 seconds."""

    kind, fingerprint = "captioned_videos", "made"

    def __init__(self, count: int):
        self.videos = [made_video(seed) for seed in range(count)]

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> Record:
        captions = {"frame": np.zeros(1, np.int64), "text": ["a texture"]}
        return {"name": "made", "video": self.videos[index], "frames": FRAMES, "captions": captions}


def made_video(seed: int) -> bytes:
    coarse = np.random.default_rng(seed).integers(0, 256, (1, HEIGHT // 4, WIDTH // 4, 3)).astype(np.uint8)
    texture, out = resize_center_crop(coarse, 2 * HEIGHT, 2 * WIDTH)[0], io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"g": str(2 * FPS), "preset": "veryfast"})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "yuv420p"
        for x in range(FRAMES):
            y = round(HEIGHT / 2 * (1 + np.sin(x / 40)))
            image = np.ascontiguousarray(texture[y : y + HEIGHT, x : x + WIDTH])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return out.getvalue()


def decode_plainly(data: bytes, window: range) -> Frames:
    with av.open(io.BytesIO(data), "r") as container:
        frames = enumerate(islice(container.decode(video=0), window[-1] + 1))
        return np.stack([frame.to_ndarray(format="rgb24") for i, frame in frames if i in window])


def drawn_clips(elements: ExampleSource, steps: range) -> list[tuple[bytes, range]]:
    """Of all elements in these batches: the file, and the frames that the loader takes of it."""
    config, clips = elements.config, []
    for index in range(steps[0] * config.batch_size, (steps[-1] + 1) * config.batch_size):
        draw = elements.draw(index)
        record = elements.records[draw.record]
        size = {"has": int(record["frames"]), "frames": config.frames, "stride": config.stride}
        clips.append((record["video"], random_window(draw.rng, record["name"], **size)))
    return clips


def benchmark(records: RecordSource, config: DataConfig, batches: int, runs: int) -> dict[str, list[float]]:
    """Seconds for so many batches by each way, in each of the turns, which have clips of their own."""
    took: dict[str, list[float]] = {}
    rows, tokenize = range(config.batch_size), lambda _: np.zeros(77, np.int32)
    for turn in range(runs):
        steps = range(1 + turn * batches, 1 + (turn + 1) * batches)
        clips = drawn_clips(ExampleSource(records, config, seed=0), steps)
        for name, finish in (
            ("plain", lambda clip: resize_center_crop(clip, config.height, config.width)),
            ("plain, not scaled", lambda clip: clip),
        ):
            decode_all = lambda finish=finish: [finish(decode_plainly(*clip)) for clip in clips]  # noqa: B023, E731
            took.setdefault(name, []).append(seconds(decode_all))
        for workers in sorted({0, config.workers}):
            with Loader(
                records, dataclasses.replace(config, workers=workers), tokenize, 0, rows, steps[0] - 1
            ) as loader:
                next(loader)  # starts the workers; from here on they are hardly ahead
                load_all = lambda loader=loader: [next(loader) for _ in steps]  # noqa: B023, E731
                took.setdefault(f"loader, {workers} workers", []).append(seconds(load_all))
    return took


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--records", help="folder of captioned videos; else they are made")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="default: one a core")
    parser.add_argument("--side", type=int, default=256, help="pixels of the clips (default: 256)")
    parser.add_argument("--runs", type=int, default=5, help="turns; times are medians (default: 5)")
    args = parser.parse_args()

    records = open_records(args.records) if args.records else MadeVideos(8)
    config = DataConfig(args.records or "made", height=args.side, width=args.side, workers=args.workers)
    batches = 4
    took = benchmark(records, config, batches, args.runs)
    print(f"{config.frames} frames, stride {config.stride}, {args.side}x{args.side}, {os.cpu_count()} cores")
    for name, times in took.items():
        ratios = [plain / own for plain, own in zip(took["plain"], times, strict=True)]
        print(
            f"{name:20}{batches * config.batch_size / median(times):7.1f} clips/s, "
            f"{median(ratios):.2f} x plain ({min(ratios):.2f} to {max(ratios):.2f})"
        )
