"""From what a page's inputs hold to configs of sample.py and scripts/edit.py, with the same checks."""

import dataclasses
import math
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from fyp_jax.config import Config, override_config
from fyp_jax.demo.limits import Limits
from fyp_jax.demo.sessions import Session
from fyp_jax.editing.options import keep_background
from fyp_jax.errors import UserError
from fyp_jax.media.clips import bundled_clip
from fyp_jax.pipeline.config import SampleConfig
from fyp_jax.pipeline.edit_config import EditConfig

UPLOAD, FILM, NO_POSE, CONFIGURED = "upload", "film", "none", "configured"
"""Choices of a pose or a clip that are no bundled one; the last one is the pose of the command's config."""

POSE_SLOT, CLIP_SLOT = "pose", "clip"
"""Inputs of the page that take a file."""


class PosedConfig(NamedTuple):
    """A config of sample.py; its pose is still to be found where it has a film."""

    config: SampleConfig
    film: Path | None


def bundled_names(folder: str, suffix: str) -> list[str]:
    """Names of the bundled poses ("poses", ".json") or clips ("clips", ".mp4")."""
    files = Path(str(resources.files("fyp_jax").joinpath("assets", folder)))
    return sorted(file.stem for file in files.glob(f"*{suffix}"))


def sample_values(
    base: SampleConfig, values: Mapping[str, Any], session: Session, limits: Limits
) -> PosedConfig:
    """The config of a clip. `values` has a number for config fields by their names, and "prompt",
    "negative_prompt", "pose" and "pose.size".

    Raises UserError as the command line does, for a missing upload, and beyond the limits.
    """
    texts = {"prompt": [values["prompt"] or ""], "negative_prompt": values["negative_prompt"] or ""}
    config = _with_numbers(base, values, ("pose", "pose.size", *texts))
    path, size, film = base.pose.path, base.pose.size, None
    if values["pose"] != CONFIGURED:
        size = None
        upload = session.uploads.get(POSE_SLOT)
        path = _chosen(values["pose"], upload, "a skeleton video or keypoints")
    if values["pose"] == FILM and path is not None:
        path, film = None, Path(path)
    size = (values["pose.size"] or "").strip() or size
    pose = dataclasses.replace(config.pose, path=path, size=size)
    config = dataclasses.replace(config, **texts, pose=pose, output_dir=str(session.folder))
    config.check()
    limits.check_clip(config)
    limits.check_last_frame(config.pose.start, config.pose.stride, config.num_frames)
    return PosedConfig(config, film)


def edit_values(base: EditConfig, values: Mapping[str, Any], session: Session, limits: Limits) -> EditConfig:
    """The config of an edit. `values` has a number for config fields by their names, and "video", "source",
    "prompt", "method" and "words" (the part that changes, with commas).

    Raises UserError as `sample_values` does.
    """
    texts = {"source": values["source"] or "", "prompt": [values["prompt"] or ""]}
    config = _with_numbers(base, values, ("video", "method", "words", *texts))
    video = _chosen(values["video"], session.uploads.get(CLIP_SLOT), "a clip")
    has_pose = video is not None and bundled_clip(video, ".json") is not None
    frames = {"stride": config.video_stride, "start": config.video_start}  # a bundled clip has a pose a frame
    pose = dataclasses.replace(config.source_pose, path=video if has_pose else None, **frames)
    edit = dataclasses.replace(config.edit, method=values["method"])
    words = [word.strip() for word in (values["words"] or "").split(",") if word.strip()]
    if not words:
        edit = dataclasses.replace(edit, blend_words=[], blend_latents=False, blend_self_attention=False)
    elif words != config.edit.blend_words:
        edit = keep_background(edit, words)
    # An inversion in a file would be that of whoever edited first.
    files = {"video": video, "source_pose": pose, "inversion": None, "output_dir": str(session.folder)}
    config = dataclasses.replace(config, **texts, **files, edit=edit)
    config.check()
    limits.check_clip(config)
    limits.check_last_frame(config.video_start, config.video_stride, config.num_frames)
    return config


def _chosen(choice: Any, upload: Path | None, what: str) -> str | None:
    """The path or the bundled name of a choice; None for no pose."""
    if choice == NO_POSE:
        return None
    if choice in (UPLOAD, FILM):
        if upload is None:
            raise UserError(f"there is no file yet: upload {'a film' if choice == FILM else what} first")
        return str(upload)
    if choice not in bundled_names("poses", ".json") + bundled_names("clips", ".mp4"):
        raise UserError(f"{choice!r}: no such choice")
    return choice


def _with_numbers(base: Config, values: Mapping[str, Any], others: tuple[str, ...]) -> Config:
    """The config with the numbers of a page: each goes the way of `a.b=c` on the command line."""
    numbers = {name: value for name, value in values.items() if name not in others}
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UserError(f"{name} has no number: give one")
    return override_config(base, [f"{name}={_plain(value)}" for name, value in numbers.items()])


def _plain(number: float | int) -> str:
    return str(int(number)) if math.isfinite(number) and number == int(number) else repr(number)
