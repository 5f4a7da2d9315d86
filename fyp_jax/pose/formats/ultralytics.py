"""Ultralytics' export of a YOLO pose model: `results[i].to_json()`, a list of the persons of one image.

    [{"name": "person", "class": 0, "confidence": 0.9, "box": {...},
      "keypoints": {"x": [...], "y": [...], "visible": [...]}}, ...]

A film is a list of such lists, which may be JSON text, as `[r.to_json() for r in results]` gives it. x and y
are pixels; `to_json(normalize=True)` makes fractions of them, which the file does not tell. The size of the
image is not in the file. Joints are COCO's 17. Source: ultralytics, `engine/results.py`, `Results.summary`.
"""

import json
from typing import Any

import numpy as np

from fyp_jax.errors import reason
from fyp_jax.pose.formats.document import PoseDocument, is_records, take_first_17
from fyp_jax.pose.keypoints import KeypointError, parse_joints, stack_people


def matches(document: object) -> bool:
    if _is_frame(document):
        return True
    if not isinstance(document, list):
        return False
    frames = [frame for frame in document if frame != []]
    texts = [frame for frame in frames if isinstance(frame, str) and frame.lstrip().startswith("[")]
    return bool(frames) and (len(texts) == len(frames) or all(_is_frame(frame) for frame in frames))


def read(document: list) -> PoseDocument:
    items = [document] if _is_frame(document) else document
    return PoseDocument("Ultralytics", [_frame(item, f"frame {i}") for i, item in enumerate(items)])


def _is_frame(value: object) -> bool:
    return is_records(value) and all("class" in item and "confidence" in item for item in value)


def _frame(value: Any, where: str) -> np.ndarray:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise KeypointError(f"{where}: its text is not JSON ({reason(error)})") from error
    if value != [] and not _is_frame(value):
        raise KeypointError(f"{where}: is not a list of persons")
    return stack_people([_person(person, f"{where}, person {i}") for i, person in enumerate(value)])


def _person(person: dict, where: str) -> np.ndarray:
    keypoints = person.get("keypoints")
    if not isinstance(keypoints, dict):
        raise KeypointError(f"{where}: has no keypoints; use a pose model, such as yolo11n-pose")
    columns = [keypoints.get(key) for key in ("x", "y", "visible") if key in keypoints]
    if len(columns) < 2 or not all(
        isinstance(column, list) and len(column) == len(columns[0] or []) for column in columns
    ):
        raise KeypointError(f"{where}: its keypoints are not lists x, y and visible of one length")
    return take_first_17(parse_joints([list(joint) for joint in zip(*columns, strict=True)], where), where)
