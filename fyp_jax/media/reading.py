"""Frames of video files, uint8 `[f h w 3]`, RGB in 0..255.

A frame is what decodes: the frame count in a container's header is never believed.
"""

import io
import os
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError

from fyp_jax.errors import UserError
from fyp_jax.media.errors import (
    BrokenVideoError,
    ClipTooShort,
    MissingFileError,
    NotAVideoError,
    media_reason,
)
from fyp_jax.media.images import Clip, Image


def frame_indices(frames: int, stride: int, start: int) -> range:
    """The frames of a clip: start, start + stride, ... UserError for frames < 1, stride < 1, start < 0."""
    for name, value, least in (("frames", frames, 1), ("stride", stride, 1), ("start", start, 0)):
        if value < least:
            raise UserError(f"{name} is {value}, it must be at least {least}")
    return range(start, start + frames * stride, stride)


def require_frames(path: str | os.PathLike[str], has: int, indices: range) -> None:
    """ClipTooShort unless a clip of `has` frames holds all the indices."""
    if indices[-1] >= has:
        raise ClipTooShort(path, has=has, frames=len(indices), stride=indices.step, start=indices[0])


def read_frames(path: str | os.PathLike[str], indices: Sequence[int]) -> Clip:
    """Frames of a video (anything FFmpeg reads), counted from 0, upright as its rotation tag says.

    The indices ascend evenly, as `frame_indices` gives them; decoding stops at the last one.
    Raises MissingFileError, NotAVideoError, BrokenVideoError, ClipTooShort.
    """
    wanted = _even_range(indices)
    pictures: list[Image] = []
    has = 0
    for has, picture in enumerate(_decode(path, wanted), start=1):
        if picture is not None:
            pictures.append(picture)
        if has > wanted[-1]:
            break
    if has == 0:
        raise NotAVideoError(path, "no frame of its video stream decodes")
    require_frames(path, has, wanted)
    return _stack(path, pictures)


def read_window(data: bytes, name: str, indices: Sequence[int], has: int) -> Clip:
    """The frames that `read_frames` gives, of a video in memory, decoded from the keyframe before the first.

    `has` is how many frames decode, counted beforehand: where the container tells of as many, its times
    lead to the frame of an index; where it does not, or where frames of those times do not come, decoding
    begins at frame 0. Errors are those of `read_frames`, with `name` for the path. One thread: it is
    processes that run beside each other where windows are read.
    """
    wanted = _even_range(indices)
    require_frames(name, has, wanted)
    with _opened(io.BytesIO(data), name) as container:
        container.streams.video[0].codec_context.thread_count = 1
        try:
            packets = list(container.demux(video=0))  # reading them is cheap, decoding is not
        except (FFmpegError, OSError) as error:
            raise BrokenVideoError(name, f"reading fails ({media_reason(error)})") from error
        pictures = _jump(packets, wanted, has)
        if pictures is None:
            try:
                decoded = enumerate(islice(_frames(packets), wanted[-1] + 1))
                pictures = [_picture(frame) for index, frame in decoded if index in wanted]
            except (FFmpegError, OSError) as error:
                raise BrokenVideoError(name, f"decoding fails ({media_reason(error)})") from error
    if len(pictures) < len(wanted):
        raise BrokenVideoError(
            name, f"frame {wanted[len(pictures)]} does not decode, though {has} were counted"
        )
    return _stack(name, pictures)


class Footage(NamedTuple):
    """What a video has, found by decoding all of it."""

    frames: int
    fps: float
    """Frames a second on average; 0 where the container does not tell."""


def inspect_video(data: bytes, name: str) -> Footage:
    """Decode a video in memory from its first to its last frame, in one thread, and count.

    Raises NotAVideoError, and BrokenVideoError where a frame does not decode or has another size, or where
    the file is cut off; the message opens with `name`.
    """
    if not data:
        raise NotAVideoError(name, "is empty (0 bytes)")
    with _opened(io.BytesIO(data), name) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        sizes, count, end = set(), 0, 0.0
        try:
            for packet in container.demux():
                if packet.pts is not None:
                    end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                if packet.stream is not stream:
                    continue
                if packet.is_corrupt:
                    raise BrokenVideoError(name, f"is cut off or damaged after {count} frames")
                for frame in packet.decode():
                    assert isinstance(frame, av.VideoFrame)
                    sizes.add((frame.height, frame.width))
                    count += 1
        except (FFmpegError, OSError) as error:
            raise BrokenVideoError(
                name, f"decoding fails after {count} frames ({media_reason(error)})"
            ) from error
        if count == 0:
            raise NotAVideoError(name, "no frame of its video stream decodes")
        if len(sizes) > 1:
            raise BrokenVideoError(name, "the frame size changes on the way")
        # FFmpeg takes a Matroska file that is cut off for a shorter one; its header says how long it was
        told = (container.duration or 0) / av.time_base if "matroska" in container.format.name else 0
        if told - end > max(1, told / 10):
            raise BrokenVideoError(name, f"is cut off: {end:.1f} s are there of {told:.1f} s by its header")
        return Footage(count, float(stream.average_rate or 0))


def _jump(packets: Sequence[av.Packet], wanted: range, has: int) -> list[Image] | None:
    """The wanted pictures by way of the last keyframe before them; None where that way cannot be trusted."""
    shown = [packet for packet in packets if packet.size and not packet.is_discard]
    times = sorted({packet.pts for packet in shown if packet.pts is not None})
    if not len(times) == len(shown) == has or any(packet.has_sidedata("new_extradata") for packet in packets):
        return None
    needed = [times[index] for index in wanted]
    # by time of display: a picture shown before its keyframe may need the pictures before that one
    keys = [i for i, p in enumerate(packets) if p.is_keyframe and p.pts is not None and p.pts <= needed[0]]
    if not keys:
        return None
    first, last = keys[-1], max(i for i, packet in enumerate(packets) if packet.pts in needed)
    # times that ascend may be mere numbers of packets, as in AVI: then each frame must come as expected
    numbers = [packet.pts for packet in shown] == times
    expected = iter(times[bisect_left(times, packets[first].pts or 0) :])
    part = packets[first:] if numbers else [*packets[first : last + 1], packets[-1]]
    pictures: dict[int | None, Image] = {}
    try:
        for frame in _frames(part, None if numbers else needed):
            if numbers and frame.pts != next(expected, None):
                return None
            if frame.pts in needed and not frame.is_corrupt:
                pictures[frame.pts] = _picture(frame)
            if len(pictures) == len(needed):
                return [pictures[time] for time in needed]
    except (FFmpegError, OSError):
        pass  # it fails from the start on too, or does not
    return None


def _frames(packets: Sequence[av.Packet], needed: Sequence[int] | None = None) -> Iterator[av.VideoFrame]:
    """What decodes from these packets alone, of which the last is empty and flushes, in order of display.

    Where it is said which times are needed, others may be missing: pictures that no other is made from.
    """
    codec = packets[-1].stream.codec_context
    codec.flush_buffers()
    for packet in packets:
        codec.skip_frame = "DEFAULT" if needed is None or packet.pts in needed else "NONREF"
        yield from packet.decode()


def _picture(frame: av.VideoFrame) -> Image:
    # how a phone was held: tagged in degrees counter-clockwise, and left to the player to turn
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)))


def _stack(path: str | os.PathLike[str], pictures: Sequence[Image]) -> Clip:
    if len({picture.shape for picture in pictures}) > 1:
        raise BrokenVideoError(path, "the frame size changes on the way")
    return np.stack(pictures)


def _even_range(indices: Sequence[int]) -> range:
    first, last = int(indices[0]), int(indices[-1])
    stride = int(indices[1]) - first if len(indices) > 1 else 1
    even = range(first, last + 1, stride) if stride >= 1 else range(0)
    if first < 0 or list(even) != [int(i) for i in indices]:
        raise ValueError(f"indices must ascend evenly from 0 or more, got {list(indices)}")
    return even


def _decode(path: str | os.PathLike[str], wanted: range) -> Iterator[Image | None]:
    """One item a frame in order of display: the picture where it is wanted, else None."""
    if not os.path.exists(path):
        raise MissingFileError(path, "no such file")
    if os.path.isdir(path):
        raise NotAVideoError(path, "is a folder, not a video")
    if os.path.getsize(path) == 0:
        raise NotAVideoError(path, "is empty (0 bytes)")
    with _opened(os.path.abspath(path), path) as container:  # absolute: FFmpeg reads "a:b.mp4" as protocol a
        count = 0
        try:
            for count, frame in enumerate(container.decode(video=0), start=1):
                yield _picture(frame) if count - 1 in wanted else None
        except (FFmpegError, OSError) as error:
            raise BrokenVideoError(
                path, f"decoding fails after {count} frames ({media_reason(error)})"
            ) from error


@contextmanager
def _opened(source: str | io.BytesIO, path: str | os.PathLike[str]) -> Iterator[InputContainer]:
    try:
        container = av.open(source, "r", metadata_errors="replace")  # titles are in any encoding
    except (FFmpegError, OSError) as error:
        raise NotAVideoError(path, f"is not a video, or is cut off ({media_reason(error)})") from error
    with container:
        if container.format.name in {"tty", "concat", "hls"}:  # FFmpeg would draw the letters of a text
            raise NotAVideoError(path, "is a text or a playlist, not a video")
        if not container.streams.video:
            kinds = sorted({stream.type for stream in container.streams})
            raise NotAVideoError(path, f"has no video stream (streams in it: {', '.join(kinds) or 'none'})")
        if container.streams.video[0].codec_context is None:
            raise NotAVideoError(path, "is in a format that this FFmpeg does not decode")
        yield container
