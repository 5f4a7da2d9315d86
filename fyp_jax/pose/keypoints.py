"""Keypoint files, a JSON format:

    {"width": 512, "height": 512, "fps": 30, "frames": [[person, ...], ...]}

Each frame is a list of persons, which may be empty. A person is 17 joints in COCO's order (`JOINTS`), nested
as 17x3 numbers or flat as 51. A joint is `[x, y, confidence]`: x and y in pixels of width x height from the
upper left corner, and a confidence in 0..1. `fps` is not read, since time is counted in frames.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from fyp_jax.media.errors import MediaError, MissingFileError
from fyp_jax.media.images import Image
from fyp_jax.media.reading import require_frames
from fyp_jax.pose.skeleton import draw_skeleton

MAX_SIDE = 8192  # pixels


class BadPoseError(MediaError):
    """A keypoint file, or an image of a pose folder, cannot be read; the message says which part of it."""


class KeypointClip(NamedTuple):
    """The content of a keypoint file."""

    width: int
    height: int
    """Size of the image in which x and y of joints are pixels."""
    frames: list[Float[np.ndarray, "p 17 3"]]
    """For each frame its persons."""


def load_keypoints(file: str | os.PathLike[str]) -> KeypointClip:
    """Read all frames of a keypoint file. Raises MissingFileError, BadPoseError."""
    width, height, frames = _read_json(Path(file))
    return KeypointClip(
        width, height, [_parse_people(Path(file), i, frame) for i, frame in enumerate(frames)]
    )


def render_keypoint_file(file: Path, indices: range) -> Iterator[Image]:
    """Render frames of a keypoint file as skeletons, at the file's own size.

    Raises MissingFileError, BadPoseError, ClipTooShort.
    """
    width, height, frames = _read_json(file)
    require_frames(file, len(frames), indices)
    for index in indices:
        yield draw_skeleton(_parse_people(file, index, frames[index]), height, width)


def _read_json(file: Path) -> tuple[int, int, list[object]]:
    """Width, height, and the frames as they are in the JSON, not yet checked."""
    if not os.path.exists(file):
        raise MissingFileError(file, "no such file")
    try:
        clip = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BadPoseError(file, f"not readable as JSON ({error})") from error
    missing = [key for key in ("width", "height", "frames") if not isinstance(clip, dict) or key not in clip]
    if missing:
        raise BadPoseError(file, f"a keypoint file needs width, height and frames; missing: {missing}")
    width, height, frames = clip["width"], clip["height"], clip["frames"]
    for name, side in (("width", width), ("height", height)):
        if type(side) is not int or not 1 <= side <= MAX_SIDE:
            raise BadPoseError(file, f"{name} is {side!r}; it must be a whole number in 1..{MAX_SIDE}")
    if not isinstance(frames, list):
        raise BadPoseError(file, f"frames must be a list, got {type(frames).__name__}")
    return width, height, frames


def _parse_people(file: Path, frame: int, persons: object) -> Float[np.ndarray, "p 17 3"]:
    if not isinstance(persons, list):
        raise BadPoseError(file, f"frame {frame} must be a list of persons, got {type(persons).__name__}")
    people = np.zeros((len(persons), 17, 3))
    for number, person in enumerate(persons):
        where = f"frame {frame}, person {number}"
        try:
            joints = np.asarray(person, dtype=float)
        except (TypeError, ValueError, OverflowError) as error:
            raise BadPoseError(file, f"{where}: not 17 joints of [x, y, confidence] ({error})") from error
        if joints.shape not in {(17, 3), (51,)}:
            raise BadPoseError(file, f"{where}: needs 17x3 or 51 numbers, got the shape {joints.shape}")
        if not (np.abs(joints) < 1e6).all():  # false for NaN too
            raise BadPoseError(file, f"{where}: a number is not finite, or is beyond a million")
        people[number] = joints.reshape(17, 3)
    return people
