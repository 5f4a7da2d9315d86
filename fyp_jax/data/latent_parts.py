"""Frames of records in order, decoded part by part, for the encoder that makes latents of them."""

import dataclasses
import io
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import PIL.Image

from fyp_jax.data.config import DataConfig
from fyp_jax.data.decoding import Record, decode_image
from fyp_jax.data.ordered_map import ordered_map
from fyp_jax.errors import UserError, reason
from fyp_jax.media.images import Frames, resize_center_crop
from fyp_jax.media.reading import read_window

FRAMES_PER_PART = 64
"""Frames that one thread decodes at a time, so that a long video needs little memory."""


@dataclasses.dataclass
class ClipInfo:
    """What a record of `latent_clips` gets."""

    name: str
    fps: float
    captions: list[str]
    caption_frames: list[int]
    first: int = 0
    frames: int = 0
    pose: bytes = b""
    problem: str = ""


class Part(NamedTuple):
    """Some frames of a clip, or the reason why they cannot be decoded."""

    clip: ClipInfo
    frames: Frames | None
    pose: bytes = b""
    problem: str = ""


def decode_parts(records: Iterable[Record], kind: str, config: DataConfig) -> Iterator[Part]:
    """The parts of each clip in order, decoded in `data.workers` threads; FFmpeg and Pillow need no GIL."""
    workers = max(1, config.workers)
    of_images = kind == "pose_images"

    def jobs() -> Iterator[tuple[ClipInfo, Record, range]]:
        for record in records:
            if of_images:
                clip, length = ClipInfo(record["name"], 0.0, [record["caption"]], [0]), 1
            else:
                starts = [int(frame) for frame in record["captions"]["frame"]]
                clip = ClipInfo(record["name"], float(record["fps"]), record["captions"]["text"], starts)
                length = int(record["frames"])
            for start in range(0, length, FRAMES_PER_PART):
                yield clip, record, range(start, min(start + FRAMES_PER_PART, length))

    with ThreadPoolExecutor(workers) as threads:

        def submit(job: tuple[ClipInfo, Record, range]) -> Future[Part]:
            clip, record, indices = job
            if of_images:
                return threads.submit(_decode_image, clip, record, config)
            return threads.submit(_decode_frames, clip, record, config, indices)

        yield from ordered_map(submit, jobs(), workers + 1)


def _decode_image(clip: ClipInfo, record: Record, config: DataConfig) -> Part:
    try:
        sample = decode_image(record, height=config.height, width=config.width)
    except UserError as error:
        return Part(clip, None, problem=_problem(clip, error))
    assert sample.pose_images is not None
    pose = io.BytesIO()
    PIL.Image.fromarray(sample.pose_images[0]).save(pose, format="PNG")
    return Part(clip, sample.video, pose.getvalue())


def _decode_frames(clip: ClipInfo, record: Record, config: DataConfig, indices: range) -> Part:
    try:
        frames = read_window(record["video"], clip.name, indices, int(record["frames"]))
    except UserError as error:
        return Part(clip, None, problem=_problem(clip, error))
    return Part(clip, resize_center_crop(frames, config.height, config.width))


def _problem(clip: ClipInfo, error: UserError) -> str:
    return reason(error).removeprefix(f"{clip.name}: ")
