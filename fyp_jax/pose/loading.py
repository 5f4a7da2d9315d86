"""A pose sequence from a skeleton video, a folder of skeleton images, or a keypoint file."""

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
from fyp_jax.pose.keypoints import BadPoseError, read_keypoint_images

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}


def find_pose(name: str) -> Path:
    """Where a pose is: the file or folder of this name, else our own clip of this (bare) name.

    Raises MissingFileError, naming our own clips, where a bare name is neither.
    """
    if os.path.exists(name) or Path(name).name != name or Path(name).suffix:
        return Path(name)
    own = Path(str(resources.files("fyp_jax").joinpath("assets", "poses")))
    if not (own / f"{name}.json").is_file():
        names = ", ".join(sorted(file.stem for file in own.glob("*.json")))
        raise MissingFileError(name, f"no such file or folder, and no pose clip of ours (we have: {names})")
    return own / f"{name}.json"


def load_pose(
    path: str | os.PathLike[str], *, num_frames: int, stride: int, start: int, height: int, width: int
) -> UInt8[np.ndarray, "{num_frames} {height} {width} 3"]:
    """Frames start, start + stride, ... of a pose, scaled to cover height x width, cropped to the centre.

    Returns RGB in [0, 1]. `path` as `pose_path` gives it: a video, a folder of images in natural order
    (2 before 10), or a keypoint `.json`. Raises UserError: MediaError and its kinds, ClipTooShort among
    them, for what is at the path; a plain one for frames, stride or start out of range.
    """
    path, indices = find_pose(os.fspath(path)), frame_indices(num_frames, stride, start)
    if os.path.isdir(path):
        pictures = _read_folder(path, indices)
    elif path.suffix.lower() == ".json":
        pictures = read_keypoint_images(path, indices)
    else:
        pictures = iter(read_frames(path, indices))
    clip = np.concatenate([resize_center_crop(picture[None], height, width) for picture in pictures])
    return clip


def load_configured_pose(
    config: PoseConfig, num_frames: int, height: int, width: int
) -> UInt8[np.ndarray, "{num_frames} {height} {width} 3"] | None:
    """The clip that a config asks for, as `load_pose` gives it; None where it asks for none.

    Raises UserError as `pose_path` and `load_pose` do, for numbers out of range without a pose too.
    """
    if config.path is None:
        frame_indices(num_frames, config.stride, config.start)
        return None
    numbers = {"num_frames": num_frames, "stride": config.stride, "start": config.start}
    return load_pose(find_pose(config.path), **numbers, height=height, width=width)


def _read_folder(folder: Path, indices: range) -> Iterator[Image]:
    files = [file for file in folder.iterdir() if file.is_file() and not file.name.startswith(".")]
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        raise BadPoseError(folder, f"no image in this folder (files in it: {len(files)})")
    require_frames(folder, len(images), indices)
    images.sort(key=_natural)
    for index in indices:
        try:
            with PIL.Image.open(images[index]) as image:
                ground = PIL.Image.new("RGBA", image.size, "black")
                picture = PIL.Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
        except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
            raise BadPoseError(images[index], f"not an image that opens ({error})") from error
        yield np.asarray(picture)


def _natural(file: Path) -> tuple[list[tuple[str, int]], str]:
    pairs = re.findall(r"(\D*)(\d*)", file.stem)
    return [(text, int(number or -1)) for text, number in pairs], file.name
