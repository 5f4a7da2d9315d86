"""COCO's annotations: images with their sizes, and annotations with joints.

    {"images": [{"id": 1, "file_name": "0001.jpg", "width": 640, "height": 480}, ...],
     "annotations": [{"image_id": 1, "keypoints": [x, y, visibility, ...]}, ...],
     "categories": [{"name": "person", "keypoints": ["nose", ...]}]}

Every image is a frame, in the natural order of the file names. A joint's visibility is 0 (not labelled, which
gives confidence 0), 1 (hidden) or 2 (visible), which both give confidence 1. Joints are found by their names
where a category has them. x and y are pixels. Source: https://cocodataset.org/#format-data
"""

from typing import Any

import numpy as np

from fyp_jax.pose.formats.document import (
    PoseDocument,
    common_size,
    missing_names_note,
    natural_order,
    places_by_name,
    take_coco,
    take_first_17,
)
from fyp_jax.pose.keypoints import Joints, KeypointError, parse_joints, stack_people


def matches(document: object) -> bool:
    return isinstance(document, dict) and "images" in document and "annotations" in document


def read(document: dict[str, Any]) -> PoseDocument:
    images, annotations = (_records(document, key) for key in ("images", "annotations"))
    names = _joint_names(document.get("categories"))
    places = None if names is None else places_by_name(names)
    people: dict[object, list[Joints]] = {}
    for number, image in enumerate(images):
        key = image.get("id")
        if type(key) not in (int, str) or key in people:
            raise KeypointError(f"image {number}: its id {key!r:.40} is no number, or another image has it")
        people[key] = []
    for number, annotation in enumerate(annotations):
        if annotation.get("keypoints") is None:
            continue  # a box alone, of another category
        key, where = annotation.get("image_id"), f"annotation {number}"
        if type(key) not in (int, str) or key not in people:
            raise KeypointError(f"{where}: its image_id {key!r:.40} is not that of an image")
        joints = parse_joints(annotation["keypoints"], where)
        joints[:, 2] = np.where(joints[:, 2] > 0, 1, 0)
        if places is not None and len(joints) != len(names or ()):
            raise KeypointError(f"{where}: has {len(joints)} joints, but its category has {len(names or ())}")
        people[key].append(take_first_17(joints, where) if places is None else take_coco(joints, places))
    if not images:
        raise KeypointError("has no image")
    size = common_size([(image.get("width"), image.get("height")) for image in images])
    ordered = sorted(images, key=lambda image: natural_order(str(image.get("file_name", image["id"]))))
    frames = [stack_people(people[image["id"]]) for image in ordered]
    return PoseDocument("COCO annotations", frames, size, notes=missing_names_note(places) if places else ())


def _records(document: dict[str, Any], key: str) -> list[dict[str, Any]]:
    records = document[key]
    if not isinstance(records, list) or not all(isinstance(item, dict) for item in records):
        raise KeypointError(f"{key} must be a list of objects")
    return records


def _joint_names(categories: object) -> list[object] | None:
    """The names of joints of the one category that has joints; None where no category names any."""
    found = [
        category["keypoints"]
        for category in (categories if isinstance(categories, list) else [])
        if isinstance(category, dict)
        and isinstance(category.get("keypoints"), list)
        and category["keypoints"]
    ]
    if len(found) > 1 and any(names != found[0] for names in found):
        raise KeypointError("has several categories with joints; keep that of persons")
    return found[0] if found else None
