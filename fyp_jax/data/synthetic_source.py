"""The synthetic world as a source of records that are rendered when they are asked for: no files, no codecs.

`data.path=synthetic://pose_images` and `data.path=synthetic://captioned_videos` open it. Record i is the
training scene of seed i (`synthetic.scenes`), so an example depends on its index alone.
"""

from typing import Any

import numpy as np

from fyp_jax.data.config import SYNTHETIC, DataConfig
from fyp_jax.data.decoding import Record, Sample
from fyp_jax.errors import UserError
from fyp_jax.pose.skeleton import draw_skeleton
from fyp_jax.synthetic.scenes import FIRST_HELD_OUT_SEED, SIZE_MULTIPLE, render_clip, training_scene

KINDS = ("pose_images", "captioned_videos")
VERSION = "2.1"
"""Part of the fingerprint. Change it along with the drawing, so that no run resumes with other pictures."""
FIRST_VIDEO = FIRST_HELD_OUT_SEED // 2
"""Seed of the first scene that is a video; those of images are smaller, so that no scene is both."""
START_FRAMES = 64
"""Videos start at one of so many frames of their scene."""


class SyntheticRecordSource:
    """Random access to half a billion scenes: `records[i]` names one, `render` renders it."""

    def __init__(self, kind: str):
        self.kind = kind
        self.fingerprint = f"synthetic world, {VERSION}, {kind}"

    def __len__(self) -> int:
        return FIRST_VIDEO

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Name and seed of a scene. Raises IndexError for an index out of range."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        seed = index + (FIRST_VIDEO if self.kind == "captioned_videos" else 0)
        return {"name": f"scene {seed}", "seed": seed}

    def check(self, config: DataConfig) -> None:
        """Raise UserError for a size that the world does not have."""
        if config.height != config.width or config.height % SIZE_MULTIPLE:
            raise UserError(
                f"data.height={config.height}, data.width={config.width}: the synthetic world is square, and "
                f"its sizes are multiples of {SIZE_MULTIPLE}"
            )

    def render(self, record: Record, config: DataConfig, rng: np.random.Generator, with_pose: bool) -> Sample:
        """Render a record as the config asks: a frame with its skeleton, or a clip that starts anywhere."""
        scene = training_scene(record["seed"])
        if self.kind == "captioned_videos":
            start = int(rng.integers(START_FRAMES))
            clip = render_clip(scene, config.num_frames, config.height, start, config.stride)
            return Sample(clip.video, None, clip.caption)
        clip = render_clip(scene, 1, config.height)
        pose_images = (
            draw_skeleton(clip.keypoints[0], config.height, config.width)[None] if with_pose else None
        )
        return Sample(clip.video, pose_images, clip.caption)

    def __repr__(self) -> str:  # Grain compares it when it restores an iterator
        return f"SyntheticRecordSource({self.fingerprint})"


def open_synthetic(path: str) -> SyntheticRecordSource:
    """The source of a path that starts with SYNTHETIC. Raises UserError where there is no such kind."""
    kind = path.removeprefix(SYNTHETIC).rstrip("/")
    if kind not in KINDS:
        raise UserError(f"{path}: the synthetic world has {' and '.join(SYNTHETIC + kind for kind in KINDS)}")
    return SyntheticRecordSource(kind)
