"""Measure clips that are made in windows: time, memory, appearance, pose accuracy, change at seams.

    python scripts/benchmark.py long_clips [--clips 4] [--frames 24 48 96] [--gif clip.gif]

The model is the bundled one; the scenes and poses are those of scripts/evaluate.py. Time is a ratio to 8
frames, of interleaved runs. Memory is what XLA allots to the largest program of a clip, beside the weights:
its temporaries, and the clip's arrays that it is given. Appearance is the fraction of clips whose first, and
whose last 8 frames look most like the character of the prompt. Change is that of the background, as in
docs/synthetic_world.md, between frames on two sides of a seam of the last step, and between all others; the
first row, of one window, has no seams.
"""

import argparse
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks.timing import interleaved_times
from fyp_jax.config import load_config
from fyp_jax.evaluation.part_segmenter import segment_parts
from fyp_jax.evaluation.scene_metrics import (
    PartMaps,
    background_scores,
    drawn_parts,
    nearest_character,
    pose_scores,
)
from fyp_jax.evaluation.scene_set import Kind, SceneCase, make_scene_cases
from fyp_jax.media.writing import write_gif
from fyp_jax.pipeline.abstract_calls import abstract_calls, lower
from fyp_jax.pipeline.config import SampleConfig
from fyp_jax.pipeline.pipeline import FollowYourPosePipeline
from fyp_jax.pipeline.windows import window_starts
from fyp_jax.synthetic.scenes import caption

CONFIG = "configs/mini/sample.yaml"


def seam_change(video: np.ndarray, parts: PartMaps, drawn: PartMaps, seams: set[int]) -> tuple[float, float]:
    """Mean change of the background between frames at a seam, and elsewhere. `seams` are the frames behind
    one."""
    pairs = [slice(i - 1, i + 1) for i in range(1, len(video))]
    changes = [background_scores(video[x], parts[x], drawn[x]).background_change for x in pairs]
    at = [i in seams for i in range(1, len(video))]
    elsewhere = float(np.mean(np.compress(np.invert(at), changes)))
    return float(np.mean(np.compress(at, changes))) if any(at) else math.nan, elsewhere


def seams_of_last_step(frames: int, window: int, overlap: int, steps: int) -> set[int]:
    """Frames at which a window of the last step begins, or that follow its end."""
    starts = window_starts(frames, window, overlap, steps - 1)
    return {edge for start in starts for edge in (start, start + window) if 0 < edge < frames}


class Memory(NamedTuple):
    """Bytes of the largest program of a clip, without weights."""

    temporaries: int
    clip: int
    """Latents, pose features and text embeddings."""

    def __str__(self) -> str:
        return f"{self.temporaries / 1e6:.1f}, {self.clip / 1e6:.2f}"


def largest_program(frames: int) -> Memory:
    """The memory of a clip of so many frames, from the programs that the compiler makes."""
    config = load_config(SampleConfig, CONFIG, [f"num_frames={frames}"])
    pipeline = FollowYourPosePipeline.from_config(config)
    calls = abstract_calls(pipeline.programs, config, pipeline.params, jax.devices())
    found = []
    for name, call in calls.items():
        analysis: Any = lower(pipeline.programs, name, call).compile().memory_analysis()
        clip = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(call.args[1:]) if x.ndim)
        found.append(Memory(analysis.temp_size_in_bytes, clip))
    return max(found, key=sum)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--clips", type=int, default=4, help="default: %(default)s")
    add("--frames", type=int, nargs="+", default=[24, 48, 96], help="default: 24 48 96")
    add("--runs", type=int, default=3, help="timed runs of each number of frames (default: %(default)s)")
    add("--window-overlap", type=int, default=0, help="default: %(default)s")
    add("--gif", type=Path, help="write the first clip with most frames here")
    args = parser.parse_args()

    pipeline = FollowYourPosePipeline.from_pretrained("mini")
    window, steps = pipeline.programs.window(pipeline.defaults), pipeline.defaults.num_inference_steps

    def sample(case: SceneCase, seed: int = 0) -> np.ndarray:
        changes = {"seed": seed, "window_overlap": args.window_overlap}
        return pipeline(caption(case.scene), case.pose_images, **changes).frames

    poses = {frames: make_scene_cases(1, frames, Kind.NAMED)[0] for frames in (window, *args.frames)}
    times = interleaved_times(
        {str(frames): lambda case=case: sample(case) for frames, case in poses.items()}, args.runs
    )
    print(
        "| frames | time | MB of temporaries, of the clip | pose accuracy | character, first and last 8 | "
        "change at seams | elsewhere |"
    )
    print("|---|---|---|---|---|---|---|")
    for frames in (window, *args.frames):
        seams = seams_of_last_step(frames, window, args.window_overlap, steps)
        ratio = np.median(np.divide(times[str(frames)], times[str(window)]))
        rows = []
        for seed, case in enumerate(make_scene_cases(args.clips, frames, Kind.NAMED)):
            video = sample(case, seed)
            parts = segment_parts(video)
            drawn = drawn_parts(case.scene, case.keypoints, video.shape[1])
            looks = [
                nearest_character(video[ends], case.keypoints[ends], case.scene, drawn[ends])
                == case.scene.characters[0]
                for ends in (slice(8), slice(-8, None))
            ]
            accuracy = pose_scores(parts, case.keypoints, drawn).accuracy
            rows.append((accuracy, *looks, *seam_change(video, parts, drawn, seams)))
            if args.gif and seed == 0 and frames == max(args.frames):
                write_gif(args.gif, video, 8)
        accuracy, first, last, at_seams, elsewhere = np.mean(rows, axis=0)
        print(
            f"| {frames} | {ratio:.1f} | {largest_program(frames)} | {accuracy:.3f} | "
            f"{first:.2f}, {last:.2f} | {f'{at_seams:.2f}' if seams else ''} | {elsewhere:.2f} |",
            flush=True,
        )
