"""AlphaPose's results: a list with an entry for each person, or its `--format open` and `--format cmu`.

    [{"image_id": "0.jpg", "keypoints": [x, y, confidence, ...], "score": 2.9, "box": [...]}, ...]
    {"0.jpg": {"version": "AlphaPose v0.3", "people": [{"pose_keypoints_2d": [...]}]}}    # open; COCO-18
    {"0.jpg": {"version": "AlphaPose v0.3", "bodies": [{"joints": [...]}]}}               # cmu; COCO-18

The list has COCO's 17 joints, or those of Halpe or COCO-WholeBody, which begin with these. A frame without
anybody is not in the file; the numbers in the names tell of it. x and y are pixels; the size of the image is
not in the file. Source: AlphaPose, `alphapose/utils/pPose_nms.py`, `write_json`.
"""

from fyp_jax.pose.formats import openpose
from fyp_jax.pose.formats.coco_results import read_records
from fyp_jax.pose.formats.document import COCO_FIRST, PoseDocument, is_records, order_frames

COUNTS = COCO_FIRST | {68}
"""Halpe's body and hands have 68 joints; elsewhere that may be the 68 points of a face."""


def matches(document: object) -> bool:
    if isinstance(document, dict):
        return bool(document) and all(_key(frame) for frame in document.values())
    return is_records(document) and all(
        "image_id" in item
        and "keypoints" in item
        and ("box" in item or "idx" in item or isinstance(item["image_id"], str))
        for item in document
    )


def read(document: dict | list) -> PoseDocument:
    if isinstance(document, list):
        return read_records(document, "AlphaPose", COUNTS)
    named = [(f"frame {name!r:.40}", frame[_key(frame)]) for name, frame in document.items()]
    found, joint_set = openpose.parse_frames(named)
    frames, notes = order_frames({name: list(people) for name, people in zip(document, found, strict=True)})
    return PoseDocument(f"AlphaPose {joint_set}".strip(), frames, notes=notes)


def _key(frame: object) -> str:
    """The key of a frame's persons, or "" where it is no frame of AlphaPose's."""
    if openpose.has_people(frame):
        return "people"
    bodies = frame.get("bodies") if isinstance(frame, dict) else None
    is_cmu = isinstance(bodies, list) and all(isinstance(body, dict) and "joints" in body for body in bodies)
    return "bodies" if is_cmu else ""
