"""Keypoint clips: persons of 17 COCO joints for each frame, how they are parsed, checked, written.

Our own form of file:

    {"width": 512, "height": 512, "fps": 30, "frames": [[person, ...], ...]}

Each frame is a list of persons, which may be empty. A person is 17 joints in COCO's order (`JOINTS`), nested
as 17x3 numbers or flat as 51. A joint is `[x, y, confidence]`: x and y in pixels of width x height from the
upper left corner, and a confidence in 0..1. A joint that is null, or in which a number is null or NaN, has
confidence 0. `[x, y]` alone has confidence 1, and confidence 0 where both are 0. `fps` is not read, since
time is counted in frames. The forms of other tools are in `formats/`, and `reading.py` opens all of them.
"""

import json
import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from fyp_jax.errors import UserError, reason, wrap_write_errors
from fyp_jax.media.errors import MediaError
from fyp_jax.pose.skeleton import MIN_CONFIDENCE

MAX_SIDE = 8192  # pixels
MAX_VALUE = 1e6  # pixels, or a confidence

Joints = Float[np.ndarray, "_ 3"]
People = Float[np.ndarray, "_ 17 3"]


class KeypointError(UserError):
    """Keypoints are wrong; the message says which part of them, and the caller knows the file."""


class BadPoseError(MediaError):
    """A keypoint file, or an image of a pose folder, cannot be read; the message says which part of it."""


class KeypointClip(NamedTuple):
    """The content of a keypoint file, or of a folder of them."""

    width: int
    height: int
    """Size of the image in which x and y of joints are pixels."""
    frames: list[People]
    """For each frame its persons."""
    form: str = "fyp_jax"
    """The form of the file: the tool, and its set of joints."""
    notes: tuple[str, ...] = ()
    """What a user should know: a sentence for each thing that was taken in a way that may surprise."""


def parse_joints(value: object, where: str, count: int | None = None) -> Joints:
    """Parse joints, nested as n of [x, y, confidence] or of [x, y], or flat as 3 n numbers.

    `count` is the n that is needed; without one, any is taken. Missing joints are (0, 0, 0). Raises
    KeypointError, whose message starts with `where`.
    """
    try:
        numbers = np.asarray(value, dtype=float)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        numbers = _parse_one_by_one(value, where, reason(error))
    fits = {(count, 3), (count, 2), (3 * count,)} if count is not None else {numbers.shape}
    if numbers.shape not in fits:
        needs = f"{count}x3 or {3 * (count or 0)} numbers"
        raise KeypointError(f"{where}: needs {needs}, got the shape {numbers.shape}")
    if numbers.ndim == 2 and numbers.shape[1] == 2:
        seen = (numbers != 0).any(axis=1)  # tools without a confidence put a missing joint at (0, 0)
        numbers = np.column_stack([numbers, seen])
    if numbers.ndim == 1 and len(numbers) % 3 == 0:
        numbers = numbers.reshape(-1, 3)
    if numbers.ndim != 2 or numbers.shape[1] != 3:
        raise KeypointError(f"{where}: needs [x, y, confidence] per joint, got the shape {numbers.shape}")
    numbers = np.where(np.isnan(numbers).any(axis=1, keepdims=True), 0.0, numbers)
    if not (np.abs(numbers) < MAX_VALUE).all():
        raise KeypointError(f"{where}: a number is not finite, or is beyond a million")
    return numbers


def _parse_one_by_one(value: object, where: str, why: str) -> np.ndarray:
    """Parse joints some of which are null, or have no confidence."""
    rows = []
    for joint in value if isinstance(value, list) else [value]:
        try:
            numbers = np.full(3, np.nan) if joint is None else np.asarray(joint, dtype=float)
        except (TypeError, ValueError, OverflowError, RecursionError):
            numbers = np.zeros(0)
        if numbers.shape == (2,):
            numbers = np.append(numbers, float(numbers.any()))
        if numbers.shape != (3,):
            raise KeypointError(f"{where}: not a list of joints of [x, y, confidence] ({why})")
        rows.append(numbers)
    return np.stack(rows) if rows else np.zeros((0, 3))


def parse_person(value: object, where: str) -> Float[np.ndarray, "17 3"]:
    """Parse a person of COCO's 17 joints: 17x3 numbers or 51, 17x2 or 34. Raises KeypointError."""
    if isinstance(value, list) and len(value) == 34 and not any(isinstance(v, list) for v in value):
        value = [value[i : i + 2] for i in range(0, 34, 2)]
    return parse_joints(value, where, 17)


def parse_people(value: object, where: str) -> People:
    """Parse the persons of a frame; each is as `parse_person` takes it. Raises KeypointError."""
    if not isinstance(value, list):
        raise KeypointError(f"{where} must be a list of persons, got {type(value).__name__}")
    return stack_people([parse_person(person, f"{where}, person {i}") for i, person in enumerate(value)])


def stack_people(people: Sequence[Float[np.ndarray, "17 3"]]) -> People:
    """The persons of a frame as one array, which may be of nobody."""
    return np.stack(people) if len(people) else np.zeros((0, 17, 3))


def parse_side(name: str, side: object) -> int:
    """A width or height in pixels; 512.0 is 512. Raises KeypointError."""
    whole = int(side) if isinstance(side, float) and side.is_integer() else side
    if type(whole) is not int or not 1 <= whole <= MAX_SIDE:
        raise KeypointError(f"{name} is {side!r:.40}; it must be a whole number in 1..{MAX_SIDE}")
    return whole


def look_like_fractions(frames: Sequence[People], size: tuple[int, int] | None) -> bool:
    """Whether all joints are so close to (0, 0) that they are fractions of the image and not pixels.

    Only joints that are drawn count. Where the size (width, height) is known and not tiny, joints may lie
    outside of the image by as much as its size.
    """
    places = confident_places(frames)
    limit = 2 if size is not None and min(size) > 16 else 1
    return len(places) > 0 and bool(places.max() <= limit)


def check_unit(frames: Sequence[People], width: int, height: int) -> None:
    """Raise KeypointError where keypoints are fractions of an image of width x height, and not pixels."""
    if look_like_fractions(frames, (width, height)):
        raise KeypointError(
            "its keypoints look like fractions of the image size; they must be in pixels: multiply x by the "
            "width and y by the height"
        )


def check_people(frames: Sequence[People], width: int, height: int) -> None:
    """Check that keypoints are pixels, and that at least one of them is seen in an image of width x height.

    Raises KeypointError.
    """
    check_unit(frames, width, height)
    if not any(len(people) for people in frames):
        raise KeypointError("its keypoints contain no person")
    places = confident_places(frames)
    if not ((places >= 0) & (places < (width, height))).all(axis=1).any():
        raise KeypointError(
            f"no keypoint with a confidence of at least {MIN_CONFIDENCE} is inside the image of "
            f"{width}x{height}"
        )


def confident_places(frames: Sequence[People]) -> Float[np.ndarray, "_ 2"]:
    """x and y of all joints that `draw_skeleton` draws."""
    joints = np.concatenate([np.zeros((0, 3)), *(people.reshape(-1, 3) for people in frames)])
    return joints[joints[:, 2] >= MIN_CONFIDENCE, :2]


def save_keypoints(file: str | os.PathLike[str], clip: KeypointClip, fps: float | None = None) -> None:
    """Write a clip in our own form, without loss. Raises UserError where the file cannot be written."""
    content = {"width": clip.width, "height": clip.height, **({} if fps is None else {"fps": fps})}
    content["frames"] = [people.tolist() for people in clip.frames]
    with wrap_write_errors(file) as path:
        path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")
