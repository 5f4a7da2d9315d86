"""The golden clip of the bundled model, which tests/test_mini_model.py compares with. Write it anew with

    python tests/make_golden.py

where the bundled weights change, and look at it: tests/fixtures/golden_robot.png has its frames side by side.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from fyp_jax.evaluation.scene_set import Kind, make_scene_cases
from fyp_jax.pipeline.pipeline import FollowYourPosePipeline

GOLDEN = Path(__file__).parent / "fixtures" / "golden_robot.png"
FRAMES, STEPS = 2, 10


def golden_strip(pipeline: FollowYourPosePipeline) -> np.ndarray:
    """The frames of a robot with the pose of the first evaluation case, side by side, [h w 3]."""
    (case,) = make_scene_cases(1, FRAMES, Kind.NAMED)
    clip = pipeline("A robot, on the beach", case.pose_images, num_inference_steps=STEPS)
    return np.concatenate(list(clip.frames), axis=1)


if __name__ == "__main__":
    Image.fromarray(golden_strip(FollowYourPosePipeline.from_pretrained("mini"))).save(GOLDEN)
