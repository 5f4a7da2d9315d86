"""OpenPose's JSON: one document for each frame, as its `--write_json` writes them; BODY_25 and COCO-18.

    {"version": 1.3, "people": [{"pose_keypoints_2d": [x, y, confidence, ...], "hand_left_keypoints_2d": ..}]}

A list of such documents is read as well. A joint that was not found is (0, 0, 0). Hands and face are left
out, and so are OpenPose's neck (the middle of the shoulders), middle of the hips, and feet, which COCO's 17
joints do not have. The size of the image is not in the file. `--keypoint_scale` may have turned pixels into
fractions, which the file does not tell. Source: OpenPose, doc/02_output.md.
"""

from fyp_jax.pose.formats.document import PoseDocument, is_records, take_coco
from fyp_jax.pose.keypoints import KeypointError, People, parse_joints, stack_people

BODY_25 = (0, 16, 15, 18, 17, 5, 2, 6, 3, 7, 4, 12, 9, 13, 10, 14, 11)
"""Where COCO's 17 joints are among OpenPose's 25."""
COCO_18 = (0, 15, 14, 17, 16, 5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10)
"""Where COCO's 17 joints are among OpenPose's 18: COCO's, and the neck."""
SETS = {25: ("BODY_25", BODY_25), 18: ("COCO-18", COCO_18)}
KEYS = ("pose_keypoints_2d", "pose_keypoints", "joints")
"""Names of the flat list of joints: OpenPose's, that of OpenPose before 1.2, AlphaPose's in its cmu form."""


def matches(document: object) -> bool:
    return has_people(document) or (is_records(document) and all(has_people(item) for item in document))


def has_people(item: object) -> bool:
    """Whether a document is a frame of OpenPose's form."""
    if not isinstance(item, dict) or not isinstance(people := item.get("people"), list):
        return False
    return all(isinstance(person, dict) and any(key in person for key in KEYS) for person in people)


def read(document: dict | list) -> PoseDocument:
    items = document if isinstance(document, list) else [document]
    frames, joint_set = parse_frames([(f"frame {i}", item["people"]) for i, item in enumerate(items)])
    return PoseDocument(f"OpenPose {joint_set}".strip(), frames)


def parse_frames(frames: list[tuple[str, list[dict]]]) -> tuple[list[People], str]:
    """Persons of frames, each with its name for messages, and the name of their set of joints.

    The set is "" where no frame has a person. Raises KeypointError.
    """
    found, sets = [], set()
    for where, people in frames:
        persons = []
        for number, person in enumerate(people):
            values = next(person[key] for key in KEYS if key in person)
            joints = parse_joints(values or [0] * 54, f"{where}, person {number}")
            if len(joints) not in SETS:
                raise KeypointError(
                    f"{where}, person {number}: has {len(joints)} joints; known are OpenPose's 25 (BODY_25) "
                    "and 18 (COCO); run OpenPose with --model_pose BODY_25"
                )
            joint_set, places = SETS[len(joints)]
            if values:
                sets.add(joint_set)
            persons.append(take_coco(joints, places))
        found.append(stack_people(persons))
    return found, " and ".join(sorted(sets))
