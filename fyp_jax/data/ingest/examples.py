"""From one item to one serialised TFDS example: read its files, decode them whole, check, serialise.

`make_example` does all of that and depends on the item alone, so any scheduler can run it: the process pool
of `pool.py`, or a pipeline such as Apache Beam.
"""

import io
import json
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32
from PIL import Image, UnidentifiedImageError
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from fyp_jax.data.datasets import BUILDERS
from fyp_jax.data.decoding import decode_image
from fyp_jax.data.ingest.items import Blob, Item, ItemError, Rejection
from fyp_jax.data.ingest.pose_npz import is_npz, npz_keypoints
from fyp_jax.errors import UserError, reason
from fyp_jax.media.reading import inspect_video
from fyp_jax.pose.skeleton import MIN_CONFIDENCE

MAX_BYTES = 2**31 - 2**20
"""Largest file that is ingested: a record is a protocol buffer, which holds less than 2 GiB."""
IMAGE_FORMATS = {"JPEG", "MPO", "PNG", "WEBP"}  # MPO is a JPEG followed by more images, as phones write it


class ExampleResult(NamedTuple):
    """Result for one item: a serialised example, or the reason why there is none."""

    example: bytes
    """A `tf.train.Example`; empty where the item is rejected."""
    rejection: Rejection | None = None


def make_example(kind: str, item: Item) -> ExampleResult:
    """Read the files of an item, decode them from start to end, check them, and serialise the example.

    Deterministic. An item that is wrong gives a rejection, never an exception.
    """
    try:
        if item.problem:
            raise ItemError(item.problem)
        example = _video_example(item) if kind == "captioned_videos" else _image_example(item)
    except UserError as error:
        why = str(error).removeprefix(f"{item.name}: ")
        return ExampleResult(b"", Rejection(item.name, " ".join(why.split())))
    except (OSError, ValueError, RuntimeError, MemoryError) as error:  # FFmpeg and Pillow, on odd files
        why = getattr(error, "strerror", None) or reason(error)
        return ExampleResult(b"", Rejection(item.name, f"cannot be read ({why})"))
    return ExampleResult(serialize_example(kind, example))


def serialize_example(kind: str, example: dict[str, Any]) -> bytes:
    """Serialise an example to the same bytes in every process, which TFDS's own function does not."""
    features = BUILDERS[kind].FEATURES
    serializer = ExampleSerializer(features.get_serialized_info())  # pyright: ignore[reportArgumentType]
    return serializer.get_tf_example(features.encode_example(example)).SerializeToString(deterministic=True)


def _video_example(item: Item) -> dict[str, Any]:
    data = _read(item.media, "video")
    frames, fps = inspect_video(data, item.name)
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
        with Image.open(io.BytesIO(data)) as image:
            found, (width, height) = image.format, image.size
            turned = image.getexif().get(0x0112, 1) >= 5
    except UnidentifiedImageError as error:  # its own message has a memory address, different in each run
        raise ItemError(f"its {what} is not an image, or is cut off") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ItemError(f"its {what} cannot be decoded ({reason(error)})") from error
    if found not in IMAGE_FORMATS:
        raise ItemError(f"its {what} is {found}, not JPEG, PNG or WebP")
    return (width, height) if turned else (height, width)


def parse_keypoints(text: str | bytes, height: int, width: int) -> Float32[np.ndarray, "p 17 3"]:
    """Parse people from JSON, in pixels of an image of height x width: 17x3 or 51 numbers, or a list of them.

    Raises ItemError for other JSON, numbers out of range, and where no confident keypoint is in the image.
    """
    try:
        value = json.loads(text)
        value = value["keypoints"] if isinstance(value, dict) else value
        numbers = np.asarray(value, np.float32)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise ItemError(f"its keypoints are not JSON of 17x3 numbers per person ({reason(error)})") from error
    if numbers.size == 0:
        raise ItemError("its keypoints contain no person")
    if not (numbers.shape[-2:] == (17, 3) and numbers.ndim <= 3) and not (
        numbers.shape[-1:] == (51,) and numbers.ndim <= 2
    ):
        raise ItemError(f"its keypoints have the shape {numbers.shape}, not (people, 17, 3)")
    people = numbers.reshape(-1, 17, 3)
    if not (np.abs(people) < 1e6).all():  # false for NaN too
        raise ItemError("its keypoints contain a number that is not finite, or not below a million")
    confident = people[people[..., 2] >= MIN_CONFIDENCE]
    inside = (confident[:, :2] >= 0).all(1) & (confident[:, :2] < (width, height)).all(1)
    if not inside.any():
        raise ItemError(
            f"no keypoint with a confidence of at least {MIN_CONFIDENCE} "
            f"is inside the image of {width}x{height}"
        )
    if confident[:, :2].max() <= 1:
        raise ItemError("its keypoints look like fractions of the image size; they must be in pixels")
    return people
