"""MediaPipe's 33 landmarks of a body, as people save them: MediaPipe itself has no file form.

A landmark is `{"x": ..., "y": ..., "z": ..., "visibility": ...}`, or `[x, y, z, visibility]`. A body is a
list of 33 landmarks. A frame is a body, a list of bodies, null (nobody), or an object that holds one of these
as `landmarks`, `landmark`, `pose_landmarks` or `poseLandmarks`. The document is a frame, a list of frames, or
an object with `frames`, and perhaps `width` and `height`. x and y are fractions of the image. World
landmarks, which are in metres, are not read. Source: MediaPipe, `solutions/pose.md` and Pose Landmarker.
"""

from typing import Any, TypeGuard

import numpy as np

from fyp_jax.pose.formats.document import PoseDocument, Unit, common_size, take_coco
from fyp_jax.pose.keypoints import KeypointError, confident_places, parse_joints, stack_people

LANDMARKS = 33
PLACES = (0, 2, 5, 7, 8, 11, 12, 13, 14, 15, 16, 23, 24, 25, 26, 27, 28)
"""Where COCO's 17 joints are among the landmarks."""
KEYS = ("landmarks", "landmark", "pose_landmarks", "poseLandmarks")
SIZES = (("width", "height"), ("image_width", "image_height"))


def matches(document: object) -> bool:
    if isinstance(document, dict) and "frames" in document:
        document = document["frames"]
    if _bodies(document) is not None:
        return bool(_bodies(document)) or isinstance(document, dict)
    if not isinstance(document, list):
        return False
    found = [_bodies(frame) for frame in document]
    return any(found) and sum(bodies is not None for bodies in found) > len(found) / 2


def read(document: dict | list) -> PoseDocument:
    size = None
    if isinstance(document, dict):
        for keys in SIZES:
            if any(key in document for key in keys):
                size = common_size([(document.get(keys[0]), document.get(keys[1]))])
    items: Any = document["frames"] if isinstance(document, dict) and "frames" in document else document
    if isinstance(items, dict) or _is_body(items):
        items = [items]
    frames = []
    for number, frame in enumerate(items):
        bodies = _bodies(frame)
        if bodies is None:
            raise KeypointError(f"frame {number}: is not of {LANDMARKS} landmarks of x and y")
        frames.append(
            stack_people([_person(body, f"frame {number}, person {i}") for i, body in enumerate(bodies)])
        )
    places = confident_places(frames)
    if len(places) and np.median(np.abs(places)) > 2:
        raise KeypointError("its landmarks must be fractions of the image, but they look like pixels")
    return PoseDocument("MediaPipe", frames, size, Unit.FRACTIONS)


def _bodies(frame: Any) -> list[list] | None:
    """The bodies of a frame; None where it is no frame."""
    if isinstance(frame, dict):
        key = next((key for key in KEYS if key in frame), None)
        if key is None:
            return None
        frame = frame[key]
        if isinstance(frame, dict):  # {"pose_landmarks": {"landmark": [...]}}
            frame = frame.get("landmark")
    if frame is None:
        return []
    if _is_body(frame):
        return [frame]
    if not isinstance(frame, list):
        return None
    bodies = [body["landmark"] if isinstance(body, dict) and "landmark" in body else body for body in frame]
    known = [body for body in bodies if _is_body(body)]
    return known if len(known) == len(bodies) else None


def _is_body(value: object) -> TypeGuard[list]:
    return isinstance(value, list) and len(value) == LANDMARKS and all(_is_landmark(item) for item in value)


def _is_landmark(value: object) -> bool:
    if isinstance(value, dict):
        return "x" in value and "y" in value
    return isinstance(value, list) and len(value) == 4 and not any(isinstance(x, list | dict) for x in value)


def _person(body: list, where: str) -> np.ndarray:
    joints = [
        [mark["x"], mark["y"], mark.get("visibility", 1)] if isinstance(mark, dict) else [*mark[:2], mark[3]]
        for mark in body
    ]
    return take_coco(parse_joints(joints, where), PLACES)
