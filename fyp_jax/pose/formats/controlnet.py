"""JSON of ControlNet's OpenPose and DWPose preprocessors: OpenPose's COCO-18, with the size of the canvas.

    [{"people": [{"pose_keypoints_2d": [x, y, confidence, ...]}], "canvas_width": 512, "canvas_height": 768}]

One such document is one frame; a list is a film. Versions differ in whether x and y are pixels or fractions
of the canvas: where no joint is beyond 1, they are fractions. Sources: sd-webui-controlnet and
comfyui_controlnet_aux, `encode_poses_as_dict`.
"""

from fyp_jax.pose.formats import openpose
from fyp_jax.pose.formats.document import PoseDocument, Unit, common_size, is_records

CANVAS = ("canvas_width", "canvas_height")


def matches(document: object) -> bool:
    items = document if isinstance(document, list) else [document]
    return (
        is_records(items)
        and all(openpose.has_people(item) for item in items)
        and any(key in item for item in items for key in CANVAS)
    )


def read(document: dict | list) -> PoseDocument:
    items = document if isinstance(document, list) else [document]
    frames, joint_set = openpose.parse_frames([(f"frame {i}", x["people"]) for i, x in enumerate(items)])
    size = common_size([(item.get(CANVAS[0]), item.get(CANVAS[1])) for item in items])
    return PoseDocument(f"ControlNet {joint_set}".strip(), frames, size, Unit.EITHER)
