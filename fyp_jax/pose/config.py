"""Which frames of which pose sequence a run uses."""

from dataclasses import dataclass

from fyp_jax.options import config_field


@dataclass
class PoseConfig:
    """Which frames of which pose clip; the size comes from the video to be made.

    Without a path there is no pose: `frames` is the length of the video, stride and start have no meaning.
    """

    path: str | None = config_field(
        "dance",
        "skeleton video, folder of images, keypoint .json, or 'dance': our own clip; "
        "null: no pose, text alone",
    )
    stride: int = config_field(5, "take every n-th frame of the pose clip")
    start: int = config_field(0, "the first frame to take, counted from 0")
