"""Clips by their names: files and the bundled ones, and frames of them in the size of a model."""

import os
from importlib import resources
from pathlib import Path

from fyp_jax.media.errors import MissingFileError
from fyp_jax.media.images import Frames, resize_center_crop
from fyp_jax.media.reading import frame_indices, read_frames


def bundled_clip(name: str, suffix: str = ".mp4") -> Path | None:
    """The path of the bundled clip of this name, e.g. "waving", or with ".json" of its pose; None where there
    is none, and where a file has the name."""
    path = _bundled_clips() / f"{name}{suffix}"
    is_plain = Path(name).name == name
    return path if is_plain and not os.path.exists(name) and path.is_file() else None


def find_clip(name: str) -> Path:
    """The path of a clip: a file, or else the bundled clip of this name.

    Raises MissingFileError where there is neither.
    """
    if os.path.exists(name):
        return Path(name)
    if (bundled := bundled_clip(name)) is not None:
        return bundled
    names = ", ".join(sorted(file.stem for file in _bundled_clips().glob("*.mp4")))
    raise MissingFileError(name, f"no such file, and no bundled clip (bundled: {names})")


def read_clip(
    file: str | os.PathLike[str], *, num_frames: int, stride: int, start: int, height: int, width: int
) -> Frames:
    """Frames start, start + stride, ... of a video, scaled to cover height x width and cropped to the centre.

    Raises UserError as `frame_indices` and `read_frames`, e.g. ClipTooShort.
    """
    frames = read_frames(file, frame_indices(num_frames, stride, start))
    return resize_center_crop(frames, height, width)


def _bundled_clips() -> Path:
    return Path(str(resources.files("fyp_jax").joinpath("assets", "clips")))
