"""Measures of any clip, from its frames, its prompt and the pose that it was given.

These are CLIP scores, the pose error by a pose estimator, and flicker.
"""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from fyp_jax.errors import UserError
from fyp_jax.evaluation.keypoint_metrics import match_people, pck
from fyp_jax.evaluation.statistics import consecutive_cosine
from fyp_jax.media.images import Frames, center_crop_box, frames_crc32
from fyp_jax.media.reading import frame_indices
from fyp_jax.pose.loading import has_keypoints, load_pose
from fyp_jax.pose.networks import FindPeople
from fyp_jax.pose.reading import load_keypoints
from fyp_jax.pose.similarity import oks
from fyp_jax.pose.skeleton import MIN_CONFIDENCE

PCK_THRESHOLD = 0.1
"""Of a person's larger side."""


class ClipMeasures(NamedTuple):
    """The measures of one clip, or of a set of clips; None where a clip does not have one."""

    text_alignment: Any = None
    """100 times the mean cosine of the CLIP embeddings of prompt and frame: the CLIP score of the paper."""
    frame_consistency: Any = None
    """100 times the mean cosine of the CLIP embeddings of consecutive frames (Esser et al. 2023)."""
    pck: Any = None
    """Fraction of the joints of the given pose that a pose estimator finds near their place in the clip."""
    oks: Any = None
    """COCO's object keypoint similarity of the given pose and the estimated one, 0 to 1."""
    flicker: Any = None
    """Mean absolute difference of consecutive frames, in levels of 0..255; motion counts, too."""


def clip_scores(
    text: Float[np.ndarray, " d"], images: Float[np.ndarray, "f d"]
) -> tuple[float, float | None]:
    """Text alignment and frame consistency of CLIP embeddings; None for the consistency of one frame."""
    consistency = 100 * consecutive_cosine(images) if len(images) > 1 else None
    return 100 * float((images @ text).mean()), consistency


def flicker(frames: Frames) -> float | None:
    """Mean absolute difference of consecutive frames, over pixels and colours, in levels of 0..255.

    It is the measure of temporal flickering of VBench (Huang et al. 2024) without its scale, so that lower is
    steadier and a still clip has 0. None for a clip of one frame.
    """
    if len(frames) < 2:
        return None
    return float(np.mean([np.abs(b.astype(np.int16) - a).mean() for a, b in pairwise(frames)]))


def given_keypoints(record: Mapping[str, Any], frames: Frames) -> list[Float[np.ndarray, "_ 17 3"]] | None:
    """The people of each frame that a clip was to follow, in its own pixels; None where it had no keypoints.

    The record is the one that sample.py wrote. A joint that the skeleton did not show has confidence 0.
    Raises UserError where the pose is not there any more, or has changed since the clip was made.
    """
    pose = record.get("pose")
    if pose is None:
        return None
    try:
        file, crc32, config = Path(pose["file"]), pose["crc32"], record["config"]["pose"]
        size, stride, start = config["size"], config["stride"], config["start"]
    except (KeyError, TypeError) as error:
        raise UserError(f"its record does not say which pose it was given ({error!r})") from error
    num_frames, height, width = frames.shape[:3]
    images = load_pose(
        file, num_frames=num_frames, stride=stride, start=start, height=height, width=width, size=size
    )
    if frames_crc32(images) != crc32:
        raise UserError(f"{file}: the pose has changed since the clip was made")
    if not has_keypoints(file):
        return None
    keypoints = load_keypoints(file, size)
    left, top, right, bottom = center_crop_box(keypoints.height, keypoints.width, height, width)
    scale = np.array([width / (right - left), height / (bottom - top), 1])
    people = []
    for index in frame_indices(num_frames, stride, start):
        person = (keypoints.frames[index] - [left, top, 0]) * scale
        inside = ((person[..., :2] >= 0) & (person[..., :2] <= [width, height])).all(axis=-1)
        person[..., 2] *= inside & (person[..., 2] >= MIN_CONFIDENCE)
        people.append(person)
    return people


def pose_error(
    frames: Frames, target: list[Float[np.ndarray, "_ 17 3"]], find_people: FindPeople
) -> tuple[float, float] | None:
    """PCK and OKS of the people that an estimator finds in a clip; None where the pose shows nobody.

    A person of the pose that the estimator does not find counts with 0.
    """
    pred = [find_people(frame) for frame in frames]
    if not any((person[:, 2] > 0).any() for people in target for person in people):
        return None
    matched, people = match_people(pred, target)
    return pck(matched, people, PCK_THRESHOLD), oks(matched, people)
