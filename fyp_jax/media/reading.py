"""Reading frames of video files, as uint8 `[f h w 3]`, RGB in 0..255.

The length of a video is the number of frames that can be decoded, whatever its header says.
"""

import io
import os
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import av
import numpy as np
from av.error import FFmpegError

from fyp_jax.errors import UserError, reason
from fyp_jax.media.display import Background, DisplayError, frame_to_rgb, picture_to_rgb
from fyp_jax.media.errors import (
    BrokenVideoError,
    ClipTooShort,
    MissingFileError,
    NotAVideoError,
    media_reason,
)
from fyp_jax.media.images import Frames, Image
from fyp_jax.media.pictures import PICTURE_ERRORS, animated_webp_frames, is_animated_webp, read_header
from fyp_jax.media.streams import OpenVideo, open_video


def frame_indices(num_frames: int, stride: int, start: int) -> range:
    """The indices start, start + stride, ... of `num_frames` frames of a clip.

    Raises UserError for num_frames < 1, stride < 1 and start < 0.
    """
    for name, value, least in (("num_frames", num_frames, 1), ("stride", stride, 1), ("start", start, 0)):
        if value < least:
            raise UserError(f"{name}={value} must be at least {least}")
    return range(start, start + num_frames * stride, stride)


def iterate_frames(path: str | os.PathLike[str]) -> Iterator[Image]:
    """All frames of a video in turn, with one frame in memory at a time. Raises as `read_frames` does."""
    shape = None
    for image in _decode(path, range(2**62), "white"):
        assert image is not None
        if image.shape != (shape or image.shape):
            raise BrokenVideoError(path, "the frame size changes")
        yield image
        shape = image.shape
    if shape is None:
        raise NotAVideoError(path, "no frame of its video stream can be decoded")


def require_frames(path: str | os.PathLike[str], clip_length: int, indices: range) -> None:
    """Raise ClipTooShort where a clip of `clip_length` frames lacks one of the indices."""
    if indices[-1] >= clip_length:
        raise ClipTooShort(
            path, clip_length=clip_length, num_frames=len(indices), stride=indices.step, start=indices[0]
        )


def read_frames(
    path: str | os.PathLike[str], indices: Sequence[int], background: Background = "white"
) -> Frames:
    """Read frames of a video in any format of FFmpeg, or of an animated WebP, as players show them.

    Transparent pixels show the background. Indices count from 0 and ascend evenly, as those of
    `frame_indices` do. Decoding stops at the last one.
    Raises MissingFileError, NotAVideoError, BrokenVideoError, ClipTooShort.
    """
    wanted = _even_range(indices)
    images: list[Image] = []
    clip_length = 0
    for clip_length, image in enumerate(_decode(path, wanted, background), start=1):
        if image is not None:
            images.append(image)
        if clip_length > wanted[-1]:
            break
    if clip_length == 0:
        raise NotAVideoError(path, "no frame of its video stream can be decoded")
    require_frames(path, clip_length, wanted)
    return _stack(path, images)


def read_window(data: bytes, name: str, indices: Sequence[int], clip_length: int) -> Frames:
    """Read the frames of `read_frames`, on white, of a video in memory, from the keyframe before the first.

    `clip_length` is the number of frames of the video, as `inspect_video` counts them. Where the container
    lists as many timestamps, those give the frame of an index. Otherwise, and where such a frame does not
    appear, decoding starts at frame 0. Errors are those of `read_frames`, with `name` in place of the path.
    Decoding uses one thread, because many data workers decode at the same time.
    """
    wanted = _even_range(indices)
    require_frames(name, clip_length, wanted)
    if is_animated_webp(data):
        every = islice(_decode_animated_webp(data, name, wanted, "white"), wanted[-1] + 1)
        images = [image for image in every if image is not None]
    else:
        images = _read_window(data, name, wanted, clip_length)
    if len(images) < len(wanted):
        raise BrokenVideoError(
            name,
            f"frame {wanted[len(images)]} cannot be decoded, though {clip_length} frames were counted",
        )
    return _stack(name, images)


def _read_window(data: bytes, name: str, wanted: range, clip_length: int) -> list[Image]:
    """The images of a window, or fewer where the video has fewer frames than `clip_length`."""
    with open_video(io.BytesIO(data), name) as video:
        video.decoder.thread_count = 1
        try:
            packets = list(video.container.demux(video.stream))  # cheap next to decoding
        except (FFmpegError, OSError) as error:
            raise BrokenVideoError(name, f"reading fails ({media_reason(error)})") from error
        try:
            images = _seek(video, packets, wanted, clip_length)
            if images is None:
                decoded = enumerate(islice(_decode_packets(video.decoder, packets), wanted[-1] + 1))
                images = [_to_rgb(video, frame) for index, frame in decoded if index in wanted]
        except DisplayError as error:
            raise BrokenVideoError(name, str(error)) from error
        except (FFmpegError, OSError) as error:
            raise BrokenVideoError(name, f"decoding fails ({media_reason(error)})") from error
        return images


class VideoInfo(NamedTuple):
    """Length and speed of a video."""

    num_frames: int
    """Number of frames that can be decoded."""
    fps: float
    """Frames per second on average; 0 where the container does not say."""


def inspect_video(data: bytes, name: str) -> VideoInfo:
    """Count the frames of a video in memory, by decoding all of them in one thread.

    Raises NotAVideoError, and BrokenVideoError where a frame cannot be decoded or has another size, or where
    the file is truncated. Messages start with `name`.
    """
    if not data:
        raise NotAVideoError(name, "is empty (0 bytes)")
    if is_animated_webp(data):
        return _inspect_animated_webp(data, name)
    with open_video(io.BytesIO(data), name) as video:
        container, stream = video.container, video.stream
        video.decoder.thread_count = 1
        sizes, count, end = set(), 0, 0.0
        try:
            for packet in container.demux():
                if packet.pts is not None:
                    end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                if packet.stream is not stream:
                    continue
                if packet.is_corrupt:
                    raise BrokenVideoError(name, f"is truncated or damaged after {count} frames")
                for frame in video.decoder.decode(packet):
                    if count == 0:
                        _to_rgb(video, frame)  # what cannot be shown right must not be stored
                    sizes.add((frame.height, frame.width))
                    count += 1
        except DisplayError as error:
            raise BrokenVideoError(name, str(error)) from error
        except (FFmpegError, OSError) as error:
            raise BrokenVideoError(
                name, f"decoding fails after {count} frames ({media_reason(error)})"
            ) from error
        if count == 0:
            raise NotAVideoError(name, "no frame of its video stream can be decoded")
        if len(sizes) > 1:
            raise BrokenVideoError(name, "the frame size changes")
        # FFmpeg reads a truncated Matroska file as a shorter one; the header tells the duration before.
        duration = (container.duration or 0) / av.time_base if "matroska" in container.format.name else 0
        if duration - end > max(1, duration / 10):
            raise BrokenVideoError(
                name, f"is truncated: {end:.1f} s are left of the {duration:.1f} s in its header"
            )
        return VideoInfo(count, float(stream.average_rate or 0))


def _inspect_animated_webp(data: bytes, name: str) -> VideoInfo:
    try:
        durations = [duration for _, duration in animated_webp_frames(data)]
    except PICTURE_ERRORS as error:
        raise BrokenVideoError(name, f"is truncated or damaged ({reason(error)})") from error
    milliseconds = sum(durations)
    return VideoInfo(len(durations), 1000 * len(durations) / milliseconds if milliseconds else 0.0)


def _decode_animated_webp(
    source: str | os.PathLike[str] | bytes,
    name: str | os.PathLike[str],
    wanted: range,
    background: Background,
) -> Iterator[Image | None]:
    try:
        for index, (picture, _) in enumerate(animated_webp_frames(source)):
            yield picture_to_rgb(picture, background) if index in wanted else None
    except PICTURE_ERRORS as error:
        raise BrokenVideoError(name, f"is truncated or damaged ({reason(error)})") from error


def _seek(
    video: OpenVideo, packets: Sequence[av.Packet], wanted: range, clip_length: int
) -> list[Image] | None:
    """Decode from the last keyframe before the first index; None where timestamps cannot be relied on."""
    shown = [packet for packet in packets if packet.size and not packet.is_discard]
    times = sorted({packet.pts for packet in shown if packet.pts is not None})
    if not len(times) == len(shown) == clip_length or any(
        packet.has_sidedata("new_extradata") for packet in packets
    ):
        return None
    needed = [times[index] for index in wanted]
    # Compare times of display: a frame that is shown before its keyframe may need frames before the keyframe.
    keys = [i for i, p in enumerate(packets) if p.is_keyframe and p.pts is not None and p.pts <= needed[0]]
    if not keys:
        return None
    first, last = keys[-1], max(i for i, packet in enumerate(packets) if packet.pts in needed)
    # Timestamps in the order of the packets may be just packet numbers, as in AVI. Then each frame must come
    # in its turn.
    numbers = [packet.pts for packet in shown] == times
    expected = iter(times[bisect_left(times, packets[first].pts or 0) :])
    part = packets[first:] if numbers else [*packets[first : last + 1], packets[-1]]
    images: dict[int | None, Image] = {}
    try:
        for frame in _decode_packets(video.decoder, part, None if numbers else needed):
            if numbers and frame.pts != next(expected, None):
                return None
            if frame.pts in needed and not frame.is_corrupt:
                images[frame.pts] = _to_rgb(video, frame)
            if len(images) == len(needed):
                return [images[time] for time in needed]
    except (FFmpegError, OSError):
        pass  # decoding from frame 0 tells whether the video is broken
    return None


def _decode_packets(
    decoder: av.VideoCodecContext, packets: Sequence[av.Packet], needed: Sequence[int] | None = None
) -> Iterator[av.VideoFrame]:
    """Decode these packets alone, in order of display; the last one must be the empty packet, which flushes.

    Where the needed timestamps are given, frames that are not needed and that no other frame refers to are
    skipped.
    """
    decoder.flush_buffers()
    for packet in packets:
        decoder.skip_frame = "DEFAULT" if needed is None or packet.pts in needed else "NONREF"
        yield from decoder.decode(packet)


def _to_rgb(video: OpenVideo, frame: av.VideoFrame, background: Background = "white") -> Image:
    return frame_to_rgb(frame, video.pixel_aspect, background)


def _stack(path: str | os.PathLike[str], images: Sequence[Image]) -> Frames:
    if len({image.shape for image in images}) > 1:
        raise BrokenVideoError(path, "the frame size changes")
    return np.stack(images)


def _even_range(indices: Sequence[int]) -> range:
    first, last = int(indices[0]), int(indices[-1])
    stride = int(indices[1]) - first if len(indices) > 1 else 1
    even = range(first, last + 1, stride) if stride >= 1 else range(0)
    if first < 0 or list(even) != [int(i) for i in indices]:
        raise ValueError(f"indices must be at least 0 and ascend evenly, got {list(indices)}")
    return even


def _decode(path: str | os.PathLike[str], wanted: range, background: Background) -> Iterator[Image | None]:
    """Yield an item for each frame, in order of display: its image where it is wanted, and otherwise None."""
    if not os.path.exists(path):
        raise MissingFileError(path, "no such file")
    if os.path.isdir(path):
        raise NotAVideoError(path, "is a folder, not a video")
    if os.path.getsize(path) == 0:
        raise NotAVideoError(path, "is empty (0 bytes)")
    if is_animated_webp(read_header(path)):
        yield from _decode_animated_webp(path, path, wanted, background)
        return
    with open_video(os.path.abspath(path), path) as video:  # a relative "a:b.mp4" would be of protocol a
        count = 0
        try:
            for packet in video.container.demux(video.stream):
                for frame in video.decoder.decode(packet):
                    count += 1
                    yield _to_rgb(video, frame, background) if count - 1 in wanted else None
        except DisplayError as error:
            raise BrokenVideoError(path, str(error)) from error
        except (FFmpegError, OSError) as error:
            raise BrokenVideoError(
                path, f"decoding fails after {count} frames ({media_reason(error)})"
            ) from error
