"""Loading pose sequences from skeleton videos, folders of skeleton images, and keypoints of any form."""

import logging
import os
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from fyp_jax.errors import UserError
from fyp_jax.media.display import picture_to_rgb
from fyp_jax.media.errors import MissingFileError
from fyp_jax.media.images import Frames, Image, frames_crc32, resize_center_crop
from fyp_jax.media.pictures import PICTURE_ERRORS, open_picture
from fyp_jax.media.reading import frame_indices, read_frames, require_frames
from fyp_jax.pose.config import PoseConfig
from fyp_jax.pose.formats.document import natural_order
from fyp_jax.pose.keypoints import BadPoseError
from fyp_jax.pose.reading import is_keypoint_file, keypoint_files, render_keypoints

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"} | {
    ".avif",
    ".heic",
    ".heif",
}
BLACK = 32
"""A pixel is black where no channel is above this; compression leaves it up to about 20."""


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
    path: str | os.PathLike[str],
    *,
    num_frames: int,
    stride: int,
    start: int,
    height: int,
    width: int,
    size: str | None = None,
) -> UInt8[np.ndarray, "{num_frames} {height} {width} 3"]:
    """Load frames start, start + stride, ... of a pose, scaled to cover height x width and center-cropped.

    Returns RGB in 0..255 on black. `path` is a video, a folder of images in natural order (2 before 10),
    keypoints in any form that `fyp_jax/pose/formats/` reads (a file, or a folder of one file per frame), or
    the name of a bundled clip, such as "dance". `size`, such as "1280x720", is the image of keypoints whose
    form does not say it. Raises UserError: MissingFileError, NotAVideoError, BrokenVideoError, BadPoseError
    and ClipTooShort for what is at the path, and a plain one for num_frames < 1, stride < 1, start < 0 and
    a size that does not fit.
    """
    path, indices = find_pose(os.fspath(path)), frame_indices(num_frames, stride, start)
    if has_keypoints(path):
        images = render_keypoints(path, indices, size)
        return np.concatenate([resize_center_crop(image[None], height, width) for image in images])
    if size is not None:
        raise UserError(f"{path}: a size (pose.size) is for keypoints only, and these are images")
    images = (
        _read_folder(path, indices) if path.is_dir() else iter(read_frames(path, indices, background="black"))
    )
    clip = np.concatenate([resize_center_crop(image[None], height, width) for image in images])
    _require_black(path, clip)
    return clip


def pose_record(config: PoseConfig, images: Frames | None) -> dict[str, Any] | None:
    """What a clip's record says of its pose: the file by its whole path, and the CRC-32 of the skeletons;
    None without a pose."""
    if config.path is None or images is None:
        return None
    return {"file": str(find_pose(config.path).absolute()), "crc32": frames_crc32(images)}


def has_keypoints(path: Path) -> bool:
    """Whether `load_pose` takes a file or folder for keypoints, and not for skeleton images."""
    return _is_keypoint_folder(path) if os.path.isdir(path) else is_keypoint_file(path)


def _require_black(path: Path, clip: UInt8[np.ndarray, "f h w 3"]) -> None:
    """Raise BadPoseError for images most of which is not black: skeletons cover a few percent."""
    share = float((clip.max(axis=-1) > BLACK).mean())
    if share > 0.5:
        raise BadPoseError(
            path,
            f"{share:.0%} of it is not black, so it is no skeleton on black; if it is a film of a person, "
            "give it as --pose-from instead, which finds the poses",
        )


def _is_keypoint_folder(folder: Path) -> bool:
    """Whether a folder has keypoint files; images beside them come first."""
    images = sum(file.suffix.lower() in IMAGE_SUFFIXES for file in folder.glob("[!.]*"))
    keypoints = len(keypoint_files(folder)) if not images else len(list(folder.glob("*_keypoints.json")))
    if images and keypoints:
        log.warning("%s: %d images and %d keypoint files; the images are taken", folder, images, keypoints)
    return bool(keypoints) and not images


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
    return load_pose(config.path, **window, height=height, width=width, size=config.size)


def _read_folder(folder: Path, indices: range) -> Iterator[Image]:
    files = [file for file in folder.iterdir() if file.is_file() and not file.name.startswith(".")]
    image_files = sorted(
        (file for file in files if file.suffix.lower() in IMAGE_SUFFIXES),
        key=lambda file: (natural_order(file.stem), file.name),
    )
    if not image_files:
        raise BadPoseError(folder, f"no image in this folder (files in it: {len(files)})")
    require_frames(folder, len(image_files), indices)
    for file in image_files[indices.start : indices.stop : indices.step]:
        try:
            with open_picture(file) as picture:
                image = picture_to_rgb(picture, "black")
        except PICTURE_ERRORS as error:
            raise BadPoseError(file, f"cannot be opened as an image ({error})") from error
        yield image
