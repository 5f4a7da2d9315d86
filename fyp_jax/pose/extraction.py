"""Poses from a film: its people are found in each frame, tracked, and written as a keypoint file.

A frame is in memory only while its people are looked for, so that a film may have any length.
"""

import contextlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from fyp_jax.errors import wrap_write_errors
from fyp_jax.media.errors import MediaError
from fyp_jax.media.headers import read_header
from fyp_jax.media.images import Image
from fyp_jax.media.reading import iterate_frames
from fyp_jax.media.writing import stream_mp4
from fyp_jax.pose.networks import FindPeople
from fyp_jax.pose.skeleton import MIN_CONFIDENCE, draw_skeleton
from fyp_jax.pose.smoothing import fill_gaps, one_euro
from fyp_jax.pose.tracking import MIN_JOINTS, Track, largest, track_people

DEFAULT_FPS = 30.0  # of a film that does not say
MAX_RANGES = 8  # shown in a message


class NoPersonError(MediaError):
    """No person was found in any frame of a film."""


class FilmPoses(NamedTuple):
    """The people of a film over time, at the film's own size and speed."""

    width: int
    height: int
    """Pixels, as players show the film."""
    fps: float
    people: list[Float[np.ndarray, "_ 17 3"]]
    """For each frame its persons, largest first: x and y in pixels, and a confidence in 0..1."""
    tracks: list[list[int]]
    """For each person of each frame the number of its track: a person keeps it over the frames."""

    def summary(self) -> str:
        """The share of frames with a person, and the frames without one, counted from 0."""
        empty = [frame for frame, people in enumerate(self.people) if not len(people)]
        total = len(self.people)
        text = f"{total - len(empty)} of {total} frames have a person ({1 - len(empty) / total:.0%})"
        return text + (f"; none in frames {frame_ranges(empty)}" if empty else "")


def extract_poses(
    film: str | os.PathLike[str],
    find_people: FindPeople,
    *,
    max_people: int | None = None,
    smooth: bool = False,
    num_frames: int | None = None,
    on_frame: Callable[[], object] = lambda: None,
) -> FilmPoses:
    """Find and track the people of a film, and fill gaps of up to 5 frames.

    With `max_people`, at most so many of the largest are kept at a time. `smooth` filters jitter. With
    `num_frames`, only the first frames are looked at. Raises MissingFileError, NotAVideoError,
    BrokenVideoError, and NoPersonError where no frame has a person.
    """
    found: list[Float[np.ndarray, "_ 17 3"]] = []
    shape = (0, 0)
    frames = iterate_frames(film)
    with contextlib.closing(frames):  # pyright: ignore[reportArgumentType]
        for image in itertools.islice(frames, num_frames):
            shape = image.shape[:2]
            found.append(find_people(image))
            on_frame()
    fps = read_header(film).fps or DEFAULT_FPS
    tracks = track_people(found)
    if not tracks:
        raise NoPersonError(film, f"no person was found in its {len(found)} frames")
    tracks = tracks if max_people is None else largest(tracks, max_people)
    people, numbers = _by_frame(tracks, len(found), fps if smooth else None)
    return FilmPoses(shape[1], shape[0], fps, people, numbers)


def write_keypoints(file: Path, poses: FilmPoses) -> None:
    """Write a keypoint file as `load_keypoints` reads it, with `tracks` beside it; whole or not at all.

    Coordinates are rounded to 1/100 pixel. Raises UserError where the file cannot be written.
    """
    content = {
        "width": poses.width,
        "height": poses.height,
        "fps": poses.fps,
        "frames": [np.round(people, 2).tolist() for people in poses.people],
        "tracks": poses.tracks,
    }
    with _replacing(file) as part:
        part.write_text(json.dumps(content) + "\n", encoding="utf-8")


def write_skeleton_video(file: Path, poses: FilmPoses) -> None:
    """Write the skeletons as an mp4 that `--pose` takes, in the film's size and speed; whole or not at all.

    An odd width or height gets a black column or row, since H.264 needs even ones. Raises UserError where the
    file cannot be written.
    """
    height, width = (side + side % 2 for side in (poses.height, poses.width))
    with _replacing(file) as part:
        stream_mp4(part, _skeletons(poses, height, width), poses.fps, height=height, width=width)


def frame_ranges(frames: Iterable[int]) -> str:
    """Ascending numbers as ranges: "3-7, 12"; after eight of them "and more"."""
    ranges: list[list[int]] = []
    for frame in frames:
        if ranges and frame == ranges[-1][1] + 1:
            ranges[-1][1] = frame
        else:
            ranges.append([frame, frame])
    shown = [str(a) if a == b else f"{a}-{b}" for a, b in ranges[:MAX_RANGES]]
    more = len(ranges) - len(shown)
    return ", ".join(shown) + (f" and {more} more ranges" if more else "")


def _by_frame(
    tracks: Sequence[Track], num_frames: int, smooth_fps: float | None
) -> tuple[list[Float[np.ndarray, "_ 17 3"]], list[list[int]]]:
    """People of each frame in the order of their tracks, and the numbers of these tracks."""
    people: list[list[np.ndarray]] = [[] for _ in range(num_frames)]
    numbers: list[list[int]] = [[] for _ in range(num_frames)]
    for number, track in enumerate(tracks):
        keypoints = fill_gaps(track.keypoints())
        if smooth_fps is not None:
            keypoints = one_euro(keypoints, smooth_fps)
        there = (keypoints[..., 2] >= MIN_CONFIDENCE).sum(axis=1) >= MIN_JOINTS
        for frame in np.flatnonzero(there):
            people[track.first + frame].append(keypoints[frame])
            numbers[track.first + frame].append(number)
    return [np.array(persons).reshape(-1, 17, 3) for persons in people], numbers


def _skeletons(poses: FilmPoses, height: int, width: int) -> Iterator[Image]:
    for people in poses.people:
        yield draw_skeleton(people, height, width)


@contextlib.contextmanager
def _replacing(file: Path) -> Iterator[Path]:
    """A file beside this one, which takes its place at the end; removed where writing fails."""
    with wrap_write_errors(file):
        part = file.with_name(f".{file.name}.{os.getpid()}.part")
        try:
            yield part
            part.replace(file)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
