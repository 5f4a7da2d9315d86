"""Loading pose sequences from skeleton videos, folders of skeleton images, and keypoint files."""

import os
import re
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import numpy as np
import PIL.Image
from jaxtyping import UInt8

from fyp_jax.media.errors import MissingFileError
from fyp_jax.media.images import Image, resize_center_crop
from fyp_jax.media.reading import frame_indices, read_frames, require_frames
from fyp_jax.pose.config import PoseConfig
from fyp_jax.pose.keypoints import BadPoseError, render_keypoint_file

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def find_pose(name: str) -> Path:
    """The path of a pose: a file or folder, or else the bundled clip of this name, e.g. "dance".

    A name with a folder or a suffix is always a path, which need not exist. Raises MissingFileError for any
    other name that is neither a file or folder nor a bundled clip.
    """
    if os.path.exists(name) or Path(name).name != name or Path(name).suffix:
        return Path(name)
    bundled = Path(str(resources.files("fyp_jax").joinpath("assets", "poses")))
    if not (bundled / f"{name}.json").is_file():
        names = ", ".join(sorted(file.stem for file in bundled.glob("*.json")))
        raise MissingFileError(name, f"no such file or folder, and no bundled pose clip (bundled: {names})")
    return bundled / f"{name}.json"


def load_pose(
    path: str | os.PathLike[str], *, num_frames: int, stride: int, start: int, height: int, width: int
) -> UInt8[np.ndarray, "{num_frames} {height} {width} 3"]:
    """Load frames start, start + stride, ... of a pose, scaled to cover height x width and center-cropped.

    Returns RGB in 0..255 on black. `path` is a video, a folder of images in natural order (2 before 10), a
    keypoint `.json`, or the name of a bundled clip, such as "dance". Raises UserError: MissingFileError,
    NotAVideoError, BrokenVideoError, BadPoseError and ClipTooShort for what is at the path, and a plain one
    for num_frames < 1, stride < 1 or start < 0.
    """
    path, indices = find_pose(os.fspath(path)), frame_indices(num_frames, stride, start)
    if os.path.isdir(path):
        images = _read_folder(path, indices)
    elif path.suffix.lower() == ".json":
        images = render_keypoint_file(path, indices)
    else:
        images = iter(read_frames(path, indices))
    return np.concatenate([resize_center_crop(image[None], height, width) for image in images])


def load_configured_pose(
    config: PoseConfig, num_frames: int, height: int, width: int
) -> UInt8[np.ndarray, "{num_frames} {height} {width} 3"] | None:
    """Load the pose of a config as `load_pose` does; None for a config without a path.

    Raises UserError as `load_pose` does; without a path, too, for numbers that are out of range.
    """
    if config.path is None:
        frame_indices(num_frames, config.stride, config.start)
        return None
    window = {"num_frames": num_frames, "stride": config.stride, "start": config.start}
    return load_pose(config.path, **window, height=height, width=width)


def _read_folder(folder: Path, indices: range) -> Iterator[Image]:
    files = [file for file in folder.iterdir() if file.is_file() and not file.name.startswith(".")]
    image_files = sorted(
        (file for file in files if file.suffix.lower() in IMAGE_SUFFIXES), key=_natural_order
    )
    if not image_files:
        raise BadPoseError(folder, f"no image in this folder (files in it: {len(files)})")
    require_frames(folder, len(image_files), indices)
    for file in image_files[indices.start : indices.stop : indices.step]:
        try:
            with PIL.Image.open(file) as opened:
                black = PIL.Image.new("RGBA", opened.size, "black")
                image = PIL.Image.alpha_composite(black, opened.convert("RGBA")).convert("RGB")
        except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
            raise BadPoseError(file, f"cannot be opened as an image ({error})") from error
        yield np.asarray(image)


def _natural_order(file: Path) -> tuple[list[tuple[str, int]], str]:
    """Sort key in which numbers count by value: frame2 before frame10."""
    pairs = re.findall(r"(\D*)(\d*)", file.stem)
    return [(text, int(number or -1)) for text, number in pairs], file.name
