"""The config of a pose sequence."""

from dataclasses import dataclass

from fyp_jax.config import config_field

POSE_FORMS = "skeleton video, folder of skeleton images, keypoint .json, or bundled clip (dance)"


@dataclass
class PoseConfig:
    """Which frames of which pose clip; number and size of the frames come from the video that is sampled."""

    path: str | None = config_field(
        "dance",
        f"{POSE_FORMS}; null: no pose",
    )
    stride: int = config_field(5, "take every n-th frame of the pose clip")
    start: int = config_field(0, "first frame to take, counted from 0")
