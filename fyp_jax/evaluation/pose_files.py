"""How well clips follow poses that are given as skeleton images alone: a filmed dance, a skeleton video."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from fyp_jax.errors import UserError
from fyp_jax.evaluation.part_segmenter import segment_parts
from fyp_jax.evaluation.scene_metrics import PartMaps
from fyp_jax.evaluation.statistics import ConfidenceInterval, bootstrap_ci
from fyp_jax.media.images import Frames
from fyp_jax.pose.loading import load_pose
from fyp_jax.synthetic.pairs import TRAIN_PAIRS
from fyp_jax.synthetic.scenes import SIZE, Scene, caption

BRIGHT = 96
"""A pixel is on a line of a skeleton where a channel is above this. Of lines that are scaled down, the rim is
darker."""


class PoseWindow(NamedTuple):
    """A part of a pose file, and the caption that a clip of it is sampled with."""

    caption: str
    pose_images: UInt8[np.ndarray, "f h w 3"]
    """Skeletons, RGB on black."""


class PoseFileScores(NamedTuple):
    """Means over the clips of a pose file, 0 to 1, with intervals; None where no clip has a skeleton."""

    accuracy: ConfidenceInterval | None
    """Fraction of the skeletons' lines on which the clip shows a figure."""
    accuracy_shuffled: ConfidenceInterval | None
    """The same on the lines of the next file's windows: the chance level."""


def pose_windows(
    files: Sequence[str], num_clips: int, frames: int, stride: int, size: int = SIZE
) -> dict[str, list[PoseWindow]]:
    """`num_clips` windows of each file, one after another; captions are pairs of training, in a fixed order.

    Raises UserError as `load_pose` does, and for fewer than two files, which leave no other pose to compare
    with.
    """
    if len(files) < 2:
        raise UserError(f"{len(files)} pose file: give at least two, as each is compared with the next one")
    pairs = itertools.cycle(TRAIN_PAIRS[i] for i in np.random.default_rng(1).permutation(len(TRAIN_PAIRS)))
    found = {}
    for file in files:
        images = load_pose(
            file, num_frames=num_clips * frames, stride=stride, start=0, height=size, width=size
        )
        scenes = (
            Scene((name,), place, "none", "walk", 0) for name, place in itertools.islice(pairs, num_clips)
        )
        windows = images.reshape(num_clips, frames, size, size, 3)
        found[file] = [PoseWindow(caption(scene), x) for scene, x in zip(scenes, windows, strict=True)]
    return found


def score_pose_files(
    windows: Mapping[str, Sequence[PoseWindow]], sample: Callable[[PoseWindow, int], Frames]
) -> Iterator[tuple[str, PoseFileScores, list[Frames]]]:
    """For each file its name, its scores and its clips, as `sample` makes them from a window and a seed."""
    files = list(windows)
    for number, file in enumerate(files):
        clips = [sample(window, seed) for seed, window in enumerate(windows[file])]
        parts = [segment_parts(clip) for clip in clips]
        other = windows[files[(number + 1) % len(files)]]
        own, shuffled = (
            [line_accuracy(x, window.pose_images) for x, window in zip(parts, given, strict=True)]
            for given in (windows[file], other)
        )
        yield Path(file).name, PoseFileScores(_mean(own), _mean(shuffled)), clips


def _mean(accuracies: Sequence[float]) -> ConfidenceInterval | None:
    """The mean over the windows that have a line; None where none has."""
    found = [x for x in accuracies if not math.isnan(x)]
    return bootstrap_ci(found) if found else None


def line_accuracy(parts: PartMaps, pose_images: UInt8[np.ndarray, "f h w 3"]) -> float:
    """Fraction of the pixels on a skeleton's lines at which a clip with these parts shows a figure; nan for
    skeletons without a line."""
    lines = skeleton_lines(pose_images)
    return float((parts[lines] > 0).mean()) if lines.any() else float("nan")


def skeleton_lines(pose_images: UInt8[np.ndarray, "f h w 3"]) -> Bool[np.ndarray, "f h w"]:
    return pose_images.max(axis=-1) > BRIGHT
