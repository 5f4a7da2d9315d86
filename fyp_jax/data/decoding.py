"""One record -> the arrays of one clip, uint8: images as clips of one frame, videos as a random window.

Runs in worker processes, where a clip of bytes is a quarter of the floats that it becomes.
"""

import io
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import PIL.Image
from jaxtyping import Float, Int
from PIL import ImageOps

from fyp_jax.media.errors import ClipTooShort, MediaError
from fyp_jax.media.images import Frames, Image, center_crop_box, resize_center_crop
from fyp_jax.media.reading import frame_indices, read_window
from fyp_jax.pose.skeleton import draw_skeleton

Record = Mapping[str, Any]
"""An element of `data/datasets.py`: a row of `pose_images` or of `captioned_videos`."""


class Sample(NamedTuple):
    """A record as it is trained on."""

    video: Frames
    """RGB in 0..255."""
    skeleton: Frames | None
    """RGB in 0..255 on black, aligned with the video; None where the dataset has no poses."""
    caption: str


class BadRecordError(MediaError):
    """A record that cannot be trained on; the message opens with its name."""


def decode_video(
    record: Record, *, frames: int, stride: int, height: int, width: int, rng: np.random.Generator
) -> Sample:
    """A random window of a captioned video, scaled to cover height x width and cropped to the centre.

    Its caption is the one that starts nearest to the middle of the window. Raises UserError with the
    record's name: ClipTooShort, BadRecordError, and what `read_window` raises.
    """
    name = as_text(record["name"])
    texts = record["captions"]["text"]
    if not len(texts):
        raise BadRecordError(name, "has no caption")
    has = int(record["frames"])
    window = random_window(rng, name, has=has, frames=frames, stride=stride)
    clip = read_window(record["video"], name, window, has)
    caption = as_text(texts[nearest(record["captions"]["frame"], window)])
    return Sample(resize_center_crop(clip, height, width), None, caption)


def random_window(rng: np.random.Generator, name: str, *, has: int, frames: int, stride: int) -> range:
    """Indices of `frames` frames of a clip that has `has`, each window as likely as the others.

    Where the stride is too large, the largest that fits. Raises ClipTooShort where even 1 is too large.
    """
    if has < frames:
        raise ClipTooShort(name, clip_length=has, num_frames=frames, stride=1, start=0)
    stride = min(stride, (has - 1) // (frames - 1)) if frames > 1 else stride
    start = int(rng.integers(has - (frames - 1) * stride))
    return frame_indices(frames, stride, start)


def nearest(starts: Int[np.ndarray, " n"], window: range) -> int:
    """Which caption starts nearest to the middle of a window, of two as near the earlier."""
    return int(np.argmin(np.abs(2 * np.asarray(starts) - (window[0] + window[-1]))))


def decode_image(record: Record, *, height: int, width: int, with_pose: bool = True) -> Sample:
    """An image and its skeleton as clips of one frame, scaled to cover height x width, cropped to the centre.

    Raises BadRecordError with the record's name: an image that does not open, or one whose skeleton has
    another aspect, so that they would not align.
    """
    name = as_text(record["name"])
    image = _open(record["image"], name, "image", ground="white")
    h, w = image.shape[:2]
    if not with_pose:
        skeleton = None
    elif record["skeleton"]:
        drawn = _open(record["skeleton"], name, "skeleton", ground="black")
        sh, sw = drawn.shape[:2]
        if abs(sh * w - sw * h) > max(h, w):  # a pixel of the skeleton is rounding
            raise BadRecordError(
                name, f"its skeleton of {sw}x{sh} has not the aspect of its image of {w}x{h} (width x height)"
            )
        skeleton = resize_center_crop(drawn[None], height, width)
    else:
        people = crop_keypoints(record["keypoints"], h, w, height, width)
        skeleton = draw_skeleton(people, height, width)[None]
    return Sample(resize_center_crop(image[None], height, width), skeleton, as_text(record["caption"]))


def crop_keypoints(
    people: Float[np.ndarray, "p 17 3"], h: int, w: int, height: int, width: int
) -> Float[np.ndarray, "p 17 3"]:
    """Persons in pixels of an image of h x w -> where `fit` to height x width moves them.

    Drawing comes after: so lines have the same width in all images, however large these were.
    """
    left, top, right, bottom = center_crop_box(h, w, height, width)
    scale = np.array([width / (right - left), height / (bottom - top), 1])
    return (people - np.array([left, top, 0])) * scale


def as_text(text: str | bytes) -> str:
    """Text of a record, which TFDS gives as bytes."""
    return text.decode() if isinstance(text, bytes) else text


def _open(data: bytes, name: str, what: str, ground: str) -> Image:
    """RGB, upright as its EXIF tag says, what is transparent on a ground of this colour."""
    try:
        with PIL.Image.open(io.BytesIO(data)) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, ground), image)
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, RuntimeError, PIL.Image.DecompressionBombError) as error:
        raise BadRecordError(name, f"its {what} does not open ({error})") from error
