"""Pose clips: float32 `[f h w 3]` in [0, 1], an RGB skeleton on black, from whatever the user has.

A pose is a skeleton video, a folder of skeleton images, or keypoints in a `.json` file:

    {"width": 512, "height": 512, "fps": 30, "frames": [[person, ...], ...]}

One list of persons a frame (it may be empty). A person is 17 joints in COCO's order (`JOINTS`), each
`[x, y, confidence]`: pixels of width x height from the upper left corner, confidence in 0..1; nested
as 17x3 or flat as 51 numbers. `fps` is for the reader, time is counted in frames.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, UInt8
from PIL import Image, ImageDraw

from fyp_jax.media.video import (
    MediaError,
    MissingFileError,
    Picture,
    fit,
    frame_indices,
    read_frames,
    require_frames,
)
from fyp_jax.options import option

JOINTS: tuple[str, ...] = (
    "nose",
    "left_eye", "right_eye", "left_ear", "right_ear",
    "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist",
    "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle",
)  # fmt: skip

BODY, LEFT, RIGHT = (255, 153, 51), (0, 255, 0), (0, 128, 255)  # left and right of the person, not the image

# COCO's 19 links in drawing order: a later one covers an earlier one, as in the published skeleton videos
LINKS = (
    ("left_ankle", "left_knee", LEFT),
    ("left_knee", "left_hip", LEFT),
    ("right_ankle", "right_knee", RIGHT),
    ("right_knee", "right_hip", RIGHT),
    ("left_hip", "right_hip", BODY),
    ("left_shoulder", "left_hip", BODY),
    ("right_shoulder", "right_hip", BODY),
    ("left_shoulder", "right_shoulder", BODY),
    ("left_shoulder", "left_elbow", LEFT),
    ("right_shoulder", "right_elbow", RIGHT),
    ("left_elbow", "left_wrist", LEFT),
    ("right_elbow", "right_wrist", RIGHT),
    ("left_eye", "right_eye", BODY),
    ("nose", "left_eye", BODY),
    ("nose", "right_eye", BODY),
    ("left_eye", "left_ear", BODY),
    ("right_eye", "right_ear", BODY),
    ("left_ear", "left_shoulder", BODY),
    ("right_ear", "right_shoulder", BODY),
)

MIN_CONFIDENCE = 0.3
PUBLISHED_SIDE, PUBLISHED_LINE = 1080, 13  # pixels, measured in the published clips
MAX_SIDE = 8192  # of a keypoint file, in pixels

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


@dataclass
class PoseConfig:
    """Which frames of which pose clip; the size comes from the video to be made.

    Without a path there is no pose: `frames` is the length of the video, stride and start have no meaning.
    """

    path: str | None = option(
        "dance",
        "skeleton video, folder of images, keypoint .json, or 'dance': our own clip; "
        "null: no pose, text alone",
    )
    frames: int = option(8, "how many frames to take")
    stride: int = option(5, "take every n-th frame of the pose clip")
    start: int = option(0, "the first frame to take, counted from 0")


class BadPoseError(MediaError):
    """Keypoints or an image of a pose folder that cannot be understood; says which."""


def pose_path(name: str) -> Path:
    """Where a pose is: the file or folder of this name, else our own clip of this (bare) name.

    Raises MissingFileError, naming our own clips, where a bare name is neither.
    """
    if os.path.exists(name) or Path(name).name != name or Path(name).suffix:
        return Path(name)
    own = Path(str(resources.files("fyp_jax").joinpath("assets", "poses")))
    if not (own / f"{name}.json").is_file():
        names = ", ".join(sorted(file.stem for file in own.glob("*.json")))
        raise MissingFileError(name, f"no such file or folder, and no pose clip of ours (we have: {names})")
    return own / f"{name}.json"


def load_pose(
    path: str | os.PathLike[str], *, frames: int, stride: int, start: int, height: int, width: int
) -> Float32[np.ndarray, "{frames} {height} {width} 3"]:
    """Frames start, start + stride, ... of a pose, scaled to cover height x width, cropped to the centre.

    Returns RGB in [0, 1]. `path` as `pose_path` gives it: a video, a folder of images in natural order
    (2 before 10), or a keypoint `.json`. Raises UserError: MediaError and its kinds, ClipTooShort among
    them, for what is at the path; a plain one for frames, stride or start out of range.
    """
    path, indices = Path(path), frame_indices(frames, stride, start)
    if os.path.isdir(path):
        pictures = _read_folder(path, indices)
    elif path.suffix.lower() == ".json":
        pictures = _read_keypoints(path, indices)
    else:
        pictures = iter(read_frames(path, indices))
    clip = np.concatenate([fit(picture[None], height, width) for picture in pictures])
    return clip.astype(np.float32) / 255


def configured_pose(
    config: PoseConfig, height: int, width: int
) -> Float32[np.ndarray, "{config.frames} {height} {width} 3"] | None:
    """The clip that a config asks for, as `load_pose` gives it; None where it asks for none.

    Raises UserError as `pose_path` and `load_pose` do, for numbers out of range without a pose too.
    """
    if config.path is None:
        frame_indices(config.frames, config.stride, config.start)
        return None
    numbers = {"frames": config.frames, "stride": config.stride, "start": config.start}
    return load_pose(pose_path(config.path), **numbers, height=height, width=width)


def draw_skeleton(
    people: Float[np.ndarray, "p 17 3"], height: int, width: int
) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """Draw persons (COCO joints, each x, y in pixels and confidence) as in the published skeleton videos.

    A joint with a confidence below 0.3 is not drawn, nor are its links.
    """
    # drawn on at least twice the published grid and reduced: Pillow's lines are up to a pixel too thin
    scale = -(-2 * PUBLISHED_SIDE // max(height, width))
    line = PUBLISHED_LINE / PUBLISHED_SIDE * min(height, width) * scale
    canvas = Image.new("RGB", (width * scale, height * scale))
    draw = ImageDraw.Draw(canvas)
    for person in people:
        joints = dict(zip(JOINTS, person, strict=True))
        for a, b, colour in LINKS:
            if min(joints[a][2], joints[b][2]) < MIN_CONFIDENCE:
                continue
            ends = [(float(x) * scale, float(y) * scale) for x, y, _ in (joints[a], joints[b])]
            draw.line(ends, fill=colour, width=round(line))
            for x, y in ends:
                draw.circle((x, y), line / 2, fill=colour)
    return np.asarray(canvas.reduce(scale))


def _read_folder(folder: Path, indices: range) -> Iterator[Picture]:
    files = [file for file in folder.iterdir() if file.is_file() and not file.name.startswith(".")]
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise BadPoseError(folder, f"no image in this folder (files in it: {len(files)})")
    require_frames(folder, len(images), indices)
    images.sort(key=_natural)
    for index in indices:
        try:
            with Image.open(images[index]) as image:
                ground = Image.new("RGBA", image.size, "black")
                picture = Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise BadPoseError(images[index], f"not an image that opens ({error})") from error
        yield np.asarray(picture)


def _natural(file: Path) -> tuple[list[tuple[str, int]], str]:
    pairs = re.findall(r"(\D*)(\d*)", file.stem)
    return [(text, int(number or -1)) for text, number in pairs], file.name


class Keypoints(NamedTuple):
    """What a keypoint file holds."""

    width: int
    height: int
    """Pixels that joints are counted in."""
    frames: list[Float[np.ndarray, "p 17 3"]]
    """Of each frame its persons."""


def load_keypoints(file: str | os.PathLike[str]) -> Keypoints:
    """All frames of a keypoint file. Raises MissingFileError, BadPoseError."""
    width, height, frames = _read_json(Path(file))
    return Keypoints(width, height, [_people(Path(file), i, frame) for i, frame in enumerate(frames)])


def _read_keypoints(file: Path, indices: range) -> Iterator[Picture]:
    width, height, frames = _read_json(file)
    require_frames(file, len(frames), indices)
    for index in indices:
        yield draw_skeleton(_people(file, index, frames[index]), height, width)


def _read_json(file: Path) -> tuple[int, int, list[object]]:
    """Width, height and the frames, which are still to be understood."""
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
            raise BadPoseError(file, f"{name} is {side!r}, it must be a whole number in 1..{MAX_SIDE}")
    if not isinstance(frames, list):
        raise BadPoseError(file, f"frames must be a list, got {type(frames).__name__}")
    return width, height, frames


def _people(file: Path, frame: int, persons: object) -> Float[np.ndarray, "p 17 3"]:
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
