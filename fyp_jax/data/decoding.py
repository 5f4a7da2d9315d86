"""From one record to the uint8 arrays of one clip: an image is a clip of one frame, a video a random window.

This runs in worker processes. Clips leave them as bytes, a quarter of the size of the floats of a batch.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from fyp_jax.media.display import Background, picture_to_rgb
from fyp_jax.media.errors import ClipTooShort, MediaError
from fyp_jax.media.images import Frames, Image, center_crop_box, resize_center_crop
from fyp_jax.media.pictures import PICTURE_ERRORS, open_picture
from fyp_jax.media.reading import frame_indices, read_window
from fyp_jax.pose.skeleton import draw_skeleton

Record = Mapping[str, Any]
"""One record of `pose_images` or `captioned_videos`, with the fields that `data.datasets` lists."""


class Sample(NamedTuple):
    """A decoded record."""

    video: Frames
    """RGB in 0..255."""
    pose_images: Frames | None
    """RGB in 0..255 on black, aligned with the video; None where the dataset has no poses."""
    caption: str

    def without_caption(self) -> "Sample":
        """The same sample with the empty text."""
        return self._replace(caption="")


class LatentSample(NamedTuple):
    """A clip of cached latents (`data.latents`), in the dtype in which they are stored."""

    mean: Float[np.ndarray, "f h w c"]
    """Mean of the VAE's posterior, not multiplied by the scaling factor."""
    std: Float[np.ndarray, "f h w c"]
    """Standard deviation of the posterior."""
    text: Float[np.ndarray, "l d"] | None
    """Text embeddings of the caption; None stands for those of the empty text."""
    pose_images: Frames | None
    """RGB in 0..255 on black; None where the dataset has no poses."""

    def without_caption(self) -> "LatentSample":
        """The same sample with the empty text."""
        return self._replace(text=None)


class CorruptRecordError(MediaError):
    """A record that cannot be trained on; the message starts with its name."""


def decode_video(
    record: Record, *, num_frames: int, stride: int, height: int, width: int, rng: np.random.Generator
) -> Sample:
    """Decode a random window of a captioned video, scaled to cover height x width and center-cropped.

    The caption is the one whose start is nearest to the middle of the window. Raises ClipTooShort,
    CorruptRecordError and what `read_window` raises, each a UserError that starts with the record's name.
    """
    name = as_text(record["name"])
    texts = record["captions"]["text"]
    if not len(texts):
        raise CorruptRecordError(name, "has no caption")
    video_length = int(record["frames"])
    window = sample_window(rng, name, video_length=video_length, num_frames=num_frames, stride=stride)
    clip = read_window(record["video"], name, window, video_length)
    caption = as_text(texts[nearest_caption(record["captions"]["frame"], window)])
    return Sample(resize_center_crop(clip, height, width), None, caption)


def sample_window(
    rng: np.random.Generator, name: str, *, video_length: int, num_frames: int, stride: int
) -> range:
    """Sample the frame indices of a window, uniformly over all windows of a video of `video_length` frames.

    Where the stride is too large, the largest that fits is used. Raises ClipTooShort where even a stride of 1
    is too large.
    """
    if video_length < num_frames:
        raise ClipTooShort(name, clip_length=video_length, num_frames=num_frames, stride=1, start=0)
    stride = min(stride, (video_length - 1) // (num_frames - 1)) if num_frames > 1 else stride
    start = int(rng.integers(video_length - (num_frames - 1) * stride))
    return frame_indices(num_frames, stride, start)


def nearest_caption(starts: Int[np.ndarray, " n"], window: range) -> int:
    """Index of the caption whose start is nearest to the middle of a window; of two as near, the earlier."""
    return int(np.argmin(np.abs(2 * np.asarray(starts) - (window[0] + window[-1]))))


def decode_image(record: Record, *, height: int, width: int, with_pose: bool = True) -> Sample:
    """Decode an image and its pose as clips of one frame, scaled to cover height x width and center-cropped.

    Raises CorruptRecordError, which starts with the record's name, for an image that cannot be decoded, and
    for a skeleton image whose aspect ratio is not that of the image, so that the two would not align.
    """
    name = as_text(record["name"])
    image = decode_picture(record["image"], name, "image", background="white")
    h, w = image.shape[:2]
    if not with_pose:
        pose_images = None
    elif record["skeleton"]:
        skeleton = decode_picture(record["skeleton"], name, "skeleton", background="black")
        sh, sw = skeleton.shape[:2]
        if abs(sh * w - sw * h) > max(h, w):  # a difference of one skeleton pixel is rounding
            raise CorruptRecordError(
                name, f"its skeleton of {sw}x{sh} and its image of {w}x{h} differ in aspect ratio"
            )
        pose_images = resize_center_crop(skeleton[None], height, width)
    else:
        people = crop_keypoints(record["keypoints"], h, w, height, width)
        pose_images = draw_skeleton(people, height, width)[None]
    return Sample(resize_center_crop(image[None], height, width), pose_images, as_text(record["caption"]))


def crop_keypoints(
    people: Float[np.ndarray, "p 17 3"], h: int, w: int, height: int, width: int
) -> Float[np.ndarray, "p 17 3"]:
    """Move keypoints of an image of h x w, in its pixels, to where `resize_center_crop` moves them.

    The skeleton is drawn afterwards, so that its lines have the same width for images of any size.
    """
    left, top, right, bottom = center_crop_box(h, w, height, width)
    scale = np.array([width / (right - left), height / (bottom - top), 1])
    return (people - np.array([left, top, 0])) * scale


def random_crop(sample: Sample, size: int, rng: np.random.Generator) -> Sample:
    """Cut a random square of `size` pixels out of a sample: the same one of all frames and skeletons."""
    top, left = (int(rng.integers(side - size + 1)) for side in sample.video.shape[1:3])
    square = np.s_[:, top : top + size, left : left + size]
    poses = sample.pose_images
    return sample._replace(video=sample.video[square], pose_images=None if poses is None else poses[square])


def as_text(text: str | bytes) -> str:
    """Text of a record as str; TFDS returns bytes."""
    return text.decode() if isinstance(text, bytes) else text


def decode_picture(data: bytes, name: str, what: str, background: Background) -> Image:
    """Decode a picture of a record, as viewers show it. Raises CorruptRecordError."""
    try:
        with open_picture(data) as picture:
            return picture_to_rgb(picture, background)
    except PICTURE_ERRORS as error:
        raise CorruptRecordError(name, f"its {what} cannot be decoded ({error})") from error
