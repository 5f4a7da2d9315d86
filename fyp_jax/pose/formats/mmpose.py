"""MMPose's predictions: those of its demos, with `meta_info`, and those of MMPoseInferencer, without.

    {"meta_info": {"keypoint_id2name": {"0": "nose", ...}},
     "instance_info": [{"frame_id": 1, "instances": [{"keypoints": [[x, y], ...], "keypoint_scores": [..]}]}]}

MMPoseInferencer writes the value of `instance_info` alone. For an image, that is the list of instances.
Joints are found by their names where the file has them, and are otherwise COCO's 17, or a set that begins
with these. x and y are pixels; the size of the image is not in the file. Source: MMPose 1.x,
`mmpose/structures/utils.py` and `demo/topdown_demo_with_mmdet.py`.
"""

from typing import Any

import numpy as np

from fyp_jax.pose.formats.document import (
    PoseDocument,
    is_records,
    missing_names_note,
    order_frames,
    places_by_name,
    take_coco,
    take_first_17,
)
from fyp_jax.pose.keypoints import KeypointError, parse_joints

DATASETS = ("coco", "body", "halpe", "human", "ochuman")
"""How the names of data sets begin whose joints are COCO's 17, or begin with these."""


def matches(document: object) -> bool:
    if isinstance(document, dict):
        return "instance_info" in document
    return is_records(document) and all("keypoint_scores" in item or "instances" in item for item in document)


def read(document: dict | list) -> PoseDocument:
    meta, items = {}, document
    if isinstance(document, dict):
        meta, items = document.get("meta_info"), document["instance_info"]
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise KeypointError("instance_info must be a list of frames or of instances")
    names = _names(meta)
    places = None if names is None else places_by_name(names)
    if items and all("instances" not in item for item in items):  # the instances of one image
        items = [{"frame_id": 0, "instances": items}]
    people: dict[object, list] = {}
    for number, item in enumerate(items):
        frame, instances = item.get("frame_id", number), item.get("instances")
        if not isinstance(instances, list) or isinstance(frame, list | dict):
            raise KeypointError(f"frame {number} has no list of instances, or no number as its frame_id")
        if frame in people:
            raise KeypointError(f"two frames have the frame_id {frame!r:.40}")
        people[frame] = [
            _person(instance, places, f"frame {number}, person {i}") for i, instance in enumerate(instances)
        ]
    frames, notes = order_frames(people)
    return PoseDocument("MMPose", frames, notes=notes + (missing_names_note(places) if places else ()))


def _person(instance: Any, places: list[int | None] | None, where: str) -> np.ndarray:
    if not isinstance(instance, dict) or not isinstance(keypoints := instance.get("keypoints"), list):
        raise KeypointError(f"{where}: has no list of keypoints")
    if any(isinstance(joint, list) and len(joint) != 2 for joint in keypoints):
        raise KeypointError(f"{where}: its joints are not [x, y]; of a 3-D pose, take the 2-D one")
    joints = parse_joints(keypoints, where)
    scores = instance.get("keypoint_scores")
    if scores is not None:
        try:
            joints[:, 2] = np.where(joints[:, 2] > 0, np.asarray(scores, dtype=float), 0)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise KeypointError(f"{where}: keypoint_scores are not one number for each joint") from error
        joints = parse_joints(joints, where)
    if places is None:
        return take_first_17(joints, where)
    if len(joints) <= max(place for place in places if place is not None):
        raise KeypointError(f"{where}: has {len(joints)} joints, fewer than the names in meta_info")
    return take_coco(joints, places)


def _names(meta: object) -> list[object] | None:
    """The name of each joint by its number, where `meta_info` has them."""
    by_number = meta.get("keypoint_id2name") if isinstance(meta, dict) else None
    if not isinstance(by_number, dict) or not by_number:
        dataset = meta.get("dataset_name") if isinstance(meta, dict) else None
        if isinstance(dataset, str) and not dataset.lower().startswith(DATASETS):
            raise KeypointError(
                f"has the joints of {dataset!r:.40}, without their names; they are not COCO's 17"
            )
        return None
    numbers = {int(key): name for key, name in by_number.items() if str(key).isdecimal() and len(key) < 6}
    return [numbers.get(i) for i in range(max(numbers, default=-1) + 1)]
