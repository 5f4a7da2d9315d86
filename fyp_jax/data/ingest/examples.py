"""From one item to one serialised TFDS example: read its files, decode them whole, check, serialise.

`make_example` does all of that and depends on the item alone, so any scheduler can run it: the process pool
of `pool.py`, or a pipeline such as Apache Beam.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32
from PIL import UnidentifiedImageError

from fyp_jax.data.datasets import BUILDERS
from fyp_jax.data.decoding import decode_image
from fyp_jax.data.ingest.items import Blob, Item, ItemError, Rejection
from fyp_jax.data.ingest.pose_npz import is_npz, npz_keypoints
from fyp_jax.data.ingest.remote import SourceError
from fyp_jax.data.shard_files import serialize
from fyp_jax.errors import UserError, reason
from fyp_jax.media.display import picture_size
from fyp_jax.media.pictures import PICTURE_ERRORS, UnsupportedPictureError, open_picture
from fyp_jax.media.reading import inspect_video
from fyp_jax.pose.keypoints import KeypointError
from fyp_jax.pose.reading import parse_image_keypoints

MAX_BYTES = 2**31 - 2**20
"""Largest file that is ingested: a record is a protocol buffer, which holds less than 2 GiB."""
IMAGE_FORMATS = {"JPEG", "MPO", "PNG", "WEBP", "AVIF", "HEIF"}
"""Pillow's names. MPO is a JPEG followed by more images, as phones write it; HEIF needs the extra `heic`."""


class ExampleResult(NamedTuple):
    """Result for one item: a serialised example, or the reason why there is none."""

    example: bytes
    """A `tf.train.Example`; empty where the item is rejected."""
    rejection: Rejection | None = None


def make_example(kind: str, item: Item) -> ExampleResult:
    """Read the files of an item, decode them from start to end, check them, and serialise the example.

    Deterministic. An item that is wrong gives a rejection, never an exception. Raises SourceError where a
    remote source fails, which says nothing about the item.
    """
    try:
        if item.problem:
            raise ItemError(item.problem)
        example = _video_example(item) if kind == "captioned_videos" else _image_example(item)
    except SourceError:
        raise
    except UserError as error:
        why = str(error).removeprefix(f"{item.name}: ")
        return ExampleResult(b"", Rejection(item.name, " ".join(why.split())))
    except (OSError, ValueError, RuntimeError, MemoryError) as error:  # FFmpeg and Pillow, on odd files
        why = getattr(error, "strerror", None) or reason(error)
        return ExampleResult(b"", Rejection(item.name, f"cannot be read ({why})"))
    return ExampleResult(serialize_example(kind, example))


def serialize_example(kind: str, example: dict[str, Any]) -> bytes:
    """Serialise an example to the same bytes in every process, which TFDS's own function does not."""
    return serialize(BUILDERS[kind].FEATURES, example)


def _video_example(item: Item) -> dict[str, Any]:
    data = _read(item.media, "video")
    frames, fps = inspect_video(data, item.name)
    if frames == 1:
        raise ItemError("has a single frame: a video needs at least 2, a picture belongs to `images`")
    starts = [caption.frame for caption in item.captions]
    if starts[0] >= frames:
        raise ItemError(f"its first caption starts at frame {starts[0]}, but it has {frames} frames")
    captions = {"frame": starts, "text": [caption.text for caption in item.captions]}
    return {"name": item.name, "video": data, "frames": frames, "fps": fps, "captions": captions}


def _image_example(item: Item) -> dict[str, Any]:
    image = _read(item.media, "image")
    height, width = _check_image(image, "image")
    skeleton, people = b"", np.zeros((0, 17, 3), np.float32)
    if item.skeleton:
        skeleton = _read(item.skeleton, "skeleton")
        _check_image(skeleton, "skeleton")
    else:
        keypoints = item.keypoints
        text = _read(keypoints, "keypoint file") if isinstance(keypoints, Blob) else keypoints
        if isinstance(text, bytes) and is_npz(text):
            text = npz_keypoints(text)
        people = parse_keypoints(text or "", height, width)
    example = {
        "name": item.name,
        "image": image,
        "skeleton": skeleton,
        "keypoints": people,
        "caption": item.captions[0].text,
    }
    decode_image(example, height=64, width=64)  # what training does must not fail either
    return example


def _read(blob: Blob | None, what: str) -> bytes:
    assert blob is not None
    if blob.size == 0:
        raise ItemError(("" if what in ("video", "image") else f"its {what} ") + "is empty (0 bytes)")
    if blob.size > MAX_BYTES:
        raise ItemError(f"its {what} has {blob.size} bytes, a record holds at most {MAX_BYTES}; split it")
    return blob.read()


def _check_image(data: bytes, what: str) -> tuple[int, int]:
    """Height and width of an encoded image, upright by its EXIF tag."""
    try:
        with open_picture(data) as picture:
            found, size = picture.format, picture_size(picture)
    except UnsupportedPictureError as error:
        raise ItemError(f"its {what} {error}") from error
    except UnidentifiedImageError as error:  # its own message has a memory address, different in each run
        raise ItemError(f"its {what} is not an image, or is cut off") from error
    except PICTURE_ERRORS as error:
        raise ItemError(f"its {what} cannot be decoded ({reason(error)})") from error
    if found not in IMAGE_FORMATS:
        raise ItemError(f"its {what} is {found}, not JPEG, PNG or WebP")
    return size


def parse_keypoints(text: str | bytes, height: int, width: int) -> Float32[np.ndarray, "p 17 3"]:
    """Parse people from JSON, in pixels of an image of height x width, as `parse_image_keypoints` does.

    Raises ItemError for other JSON, numbers out of range, and where no confident keypoint is in the image.
    """
    try:
        return parse_image_keypoints(text, width, height).astype(np.float32)
    except KeypointError as error:
        raise ItemError(str(error)) from error
