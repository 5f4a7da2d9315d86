"""The config of a pose sequence."""

from dataclasses import dataclass

from fyp_jax.config import config_field

POSE_FORMS = (
    "skeleton video, folder of images, keypoints (ours, OpenPose, MMPose, ...), or bundled clip (dance)"
)


@dataclass
class PoseConfig:
    """Which frames of which pose clip; number and size of the frames come from the video that is sampled."""

    path: str | None = config_field(
        "dance",
        f"{POSE_FORMS}; null: no pose",
    )
    size: str | None = config_field(
        None, "WIDTHxHEIGHT of the film, for keypoints whose file does not say it (OpenPose, MMPose, ...)"
    )
    stride: int = config_field(5, "take every n-th frame of the pose clip")
    start: int = config_field(0, "first frame to take, counted from 0")
