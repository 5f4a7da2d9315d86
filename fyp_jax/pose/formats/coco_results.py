"""COCO's results: a list with an entry for each person.

    [{"image_id": 12, "category_id": 1, "keypoints": [x, y, confidence, ...], "score": 0.9}, ...]

Joints are COCO's 17, or a set that begins with these. An image without anybody is not in the file; where
`image_id` counts, the numbers tell of it. x and y are pixels; the size of the image is not in the file.
Source: https://cocodataset.org/#format-results
"""

from typing import Any

from fyp_jax.pose.formats.document import COCO_FIRST, PoseDocument, is_records, order_frames, take_first_17
from fyp_jax.pose.keypoints import Joints, KeypointError, parse_joints


def matches(document: object) -> bool:
    return is_records(document) and all(
        "image_id" in item and isinstance(item.get("keypoints"), list) for item in document
    )


def read(document: list[dict[str, Any]]) -> PoseDocument:
    return read_records(document, "COCO results")


def read_records(
    records: list[dict[str, Any]], form: str, counts: frozenset[int] = COCO_FIRST
) -> PoseDocument:
    """Group entries by their image. Raises KeypointError."""
    people: dict[object, list[Joints]] = {}
    for number, record in enumerate(records):
        image, where = record["image_id"], f"entry {number}, image {record['image_id']!r:.40}"
        if type(image) not in (int, str):
            raise KeypointError(f"{where}: image_id is neither a number nor a name")
        person = take_first_17(parse_joints(record["keypoints"], where), where, counts)
        people.setdefault(image, []).append(person)
    frames, notes = order_frames(people)
    return PoseDocument(form, frames, notes=notes)
