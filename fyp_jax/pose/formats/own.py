"""Our own form, which `fyp_jax/pose/keypoints.py` describes."""

from fyp_jax.pose.formats.document import PoseDocument
from fyp_jax.pose.keypoints import KeypointError, parse_people, parse_side

KEYS = ("width", "height", "frames")


def matches(document: object) -> bool:
    return isinstance(document, dict) and any(key in document for key in KEYS)


def read(document: dict) -> PoseDocument:
    missing = [key for key in KEYS if key not in document]
    if missing:
        raise KeypointError(f"a keypoint file needs width, height and frames; missing: {missing}")
    size = parse_side("width", document["width"]), parse_side("height", document["height"])
    frames = document["frames"]
    if not isinstance(frames, list):
        raise KeypointError(f"frames must be a list, got {type(frames).__name__}")
    return PoseDocument(
        "fyp_jax", [parse_people(frame, f"frame {i}") for i, frame in enumerate(frames)], size
    )
