"""Clips in and out of files. A clip is uint8 `[f h w 3]`, RGB in 0..255, everywhere in this module.

What counts as a frame is what decodes: the frame count in a container's header is never believed.
All writers are deterministic: the same frames give the same bytes.
"""

import io
import os
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.reformatter import Colorspace
from jaxtyping import UInt8
from PIL import GifImagePlugin, Image

from fyp_jax.errors import UserError

Clip = UInt8[np.ndarray, "f h w 3"]
Picture = UInt8[np.ndarray, "h w 3"]

SHEET_COLUMNS = 8
SHEET_GAP = 4  # pixels
SHEET_GREY = 128


class MediaError(UserError):
    """A file cannot be read or written; the message opens with its path."""

    def __init__(self, path: str | os.PathLike[str], problem: str):
        super().__init__(f"{os.fspath(path)}: {problem}")
        self.path = Path(path)


class MissingFileError(MediaError):
    """There is nothing at this path."""


class NotAVideoError(MediaError):
    """There is something at this path, but no frame to be had from it."""


class BrokenVideoError(MediaError):
    """Decoding fails at a frame that is needed."""


class ClipTooShort(MediaError):  # noqa: N818  (names the fact, as a caller says it)
    """A clip of `has` frames, asked for frames start, start + stride, ... (`frames` of them)."""

    def __init__(self, path: str | os.PathLike[str], *, has: int, frames: int, stride: int, start: int):
        last_stride = (has - 1 - start) // (frames - 1) if frames > 1 else 0
        most_frames = (has - 1 - start) // stride + 1
        fits = []
        if last_stride >= 1:
            fits.append(f"stride {last_stride} at most for {frames} frames")
        if most_frames >= 1:
            fits.append(f"{most_frames} frames at most with stride {stride} from frame {start}")
        if not fits:
            fits.append(f"a start below {has}" if has else "nothing, there is no frame")
        super().__init__(
            path,
            f"has {has} frames, but {frames} frames with stride {stride} from frame {start} need "
            f"{start + (frames - 1) * stride + 1}; what fits: {', or '.join(fits)}",
        )
        self.has, self.frames, self.stride, self.start = has, frames, stride, start


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
    pictures: list[Picture] = []
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
            raise BrokenVideoError(name, f"reading fails ({_reason(error)})") from error
        pictures = _jump(packets, wanted, has)
        if pictures is None:
            try:
                decoded = enumerate(islice(_frames(packets), wanted[-1] + 1))
                pictures = [_picture(frame) for index, frame in decoded if index in wanted]
            except (FFmpegError, OSError) as error:
                raise BrokenVideoError(name, f"decoding fails ({_reason(error)})") from error
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
            raise BrokenVideoError(name, f"decoding fails after {count} frames ({_reason(error)})") from error
        if count == 0:
            raise NotAVideoError(name, "no frame of its video stream decodes")
        if len(sizes) > 1:
            raise BrokenVideoError(name, "the frame size changes on the way")
        # FFmpeg takes a Matroska file that is cut off for a shorter one; its header says how long it was
        told = (container.duration or 0) / av.time_base if "matroska" in container.format.name else 0
        if told - end > max(1, told / 10):
            raise BrokenVideoError(name, f"is cut off: {end:.1f} s are there of {told:.1f} s by its header")
        return Footage(count, float(stream.average_rate or 0))


def _jump(packets: Sequence[av.Packet], wanted: range, has: int) -> list[Picture] | None:
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
    pictures: dict[int | None, Picture] = {}
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


def _picture(frame: av.VideoFrame) -> Picture:
    # how a phone was held: tagged in degrees counter-clockwise, and left to the player to turn
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90)))


def _stack(path: str | os.PathLike[str], pictures: Sequence[Picture]) -> Clip:
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


def _decode(path: str | os.PathLike[str], wanted: range) -> Iterator[Picture | None]:
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
            raise BrokenVideoError(path, f"decoding fails after {count} frames ({_reason(error)})") from error


@contextmanager
def _opened(source: str | io.BytesIO, path: str | os.PathLike[str]) -> Iterator[InputContainer]:
    try:
        container = av.open(source, "r", metadata_errors="replace")  # titles are in any encoding
    except (FFmpegError, OSError) as error:
        raise NotAVideoError(path, f"is not a video, or is cut off ({_reason(error)})") from error
    with container:
        if container.format.name in {"tty", "concat", "hls"}:  # FFmpeg would draw the letters of a text
            raise NotAVideoError(path, "is a text or a playlist, not a video")
        if not container.streams.video:
            kinds = sorted({stream.type for stream in container.streams})
            raise NotAVideoError(path, f"has no video stream (streams in it: {', '.join(kinds) or 'none'})")
        if container.streams.video[0].codec_context is None:
            raise NotAVideoError(path, "is in a format that this FFmpeg does not decode")
        yield container


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def fit(frames: Clip, height: int, width: int) -> UInt8[np.ndarray, "f {height} {width} 3"]:
    """Scale to cover height x width with the aspect kept, and crop to the centre."""
    h, w = frames.shape[1:3]
    if (h, w) == (height, width):
        return frames
    box = centre_box(h, w, height, width)  # resize() reads just that, to a fraction of a pixel
    # BICUBIC: Pillow widens it when reducing, so nothing aliases, and thin lines ring less than by LANCZOS
    return np.stack(
        [
            np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC, box))
            for frame in frames
        ]
    )


def centre_box(h: int, w: int, height: int, width: int) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of what `fit` shows of a frame of h x w, in its pixels."""
    crop_h, crop_w = min(h, w * height / width), min(w, h * width / height)
    top, left = (h - crop_h) / 2, (w - crop_w) / 2
    return left, top, left + crop_w, top + crop_h


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """The path, its folder made; MediaError where the disk says no."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        yield Path(path)
    except (FFmpegError, OSError) as error:
        raise MediaError(path, f"cannot be written ({_reason(error)})") from error


def _check_clip(frames: Clip, fps: int | float) -> None:
    if len(frames) == 0 or not fps > 0:
        raise ValueError(f"a clip needs frames and an fps above 0, got {len(frames)} frames at {fps} fps")


def write_mp4(path: str | os.PathLike[str], frames: Clip, fps: int | float) -> None:
    """H.264 (crf 18, yuv420p, BT.709). Height and width must be even; fps is in frames a second."""
    _check_clip(frames, fps)
    height, width = frames.shape[1:3]
    if height % 2 or width % 2:
        raise ValueError(f"H.264 in yuv420p needs an even height and width, got {height}x{width}")
    with (
        writing(path) as file,
        av.open(str(file.absolute()), "w", format="mp4", options={"movflags": "+faststart"}) as container,
    ):
        # One thread, as the bytes depend on how many there are; and no B-frames, as x264's search for them
        # gives different files for the same small frames (tests/test_video.py).
        options = {"crf": "18", "threads": "1", "bf": "0"}
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        bt709 = stream.codec_context  # say so, or players guess the matrix from the size
        bt709.colorspace = bt709.color_primaries = bt709.color_trc = 1
        bt709.color_range = 1
        for image in frames:
            rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            container.mux(stream.encode(rgb.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)))
        container.mux(stream.encode())


def write_gif(path: str | os.PathLike[str], frames: Clip, fps: int | float) -> None:
    """Endless GIF, a palette of 256 colours for each frame; fps is in frames a second, 50 at most.

    Exactly the frames given are written: Pillow's own `save` merges a frame with an equal one before it.
    """
    _check_clip(frames, fps)
    if fps > 50:
        raise ValueError(f"players slow down a GIF of more than 50 fps, got {fps}")
    images = [Image.fromarray(frame).quantize(256) for frame in frames]
    # a GIF counts in 1/100 s: round the ends of the frames, so that the clip as a whole keeps time
    ends = [round(100 * i / fps) for i in range(len(images) + 1)]
    with writing(path) as file, file.open("wb") as out:
        out.writelines(GifImagePlugin.getheader(images[0], info={"loop": 0})[0])
        for image, (begin, end) in zip(images, pairwise(ends), strict=True):
            milliseconds = 10 * (end - begin)
            out.writelines(GifImagePlugin.getdata(image, duration=milliseconds, include_color_table=True))
        out.write(b";")


def write_png(path: str | os.PathLike[str], image: Picture) -> None:
    """One RGB picture, lossless."""
    with writing(path) as file:
        Image.fromarray(image).save(file, format="PNG")


def contact_sheet(rows: Sequence[UInt8[np.ndarray, "_ _ _ 3"]]) -> Picture:
    """Clips of one shape above each other, time from left to right, grey gaps.

    After 8 columns a new block begins below: 24 frames of poses and video are 3 blocks of 2 rows.
    """
    shapes = {clip.shape for clip in rows}
    if len(shapes) != 1 or 0 in next(iter(shapes)):
        raise ValueError(f"the rows of a contact sheet must share one shape, got {[c.shape for c in rows]}")
    count, height, width, _ = shapes.pop()
    columns = min(count, SHEET_COLUMNS)
    blocks = -(-count // columns)
    cell_h, cell_w = height + SHEET_GAP, width + SHEET_GAP
    size = (blocks * len(rows) * cell_h - SHEET_GAP, columns * cell_w - SHEET_GAP, 3)
    sheet = np.full(size, SHEET_GREY, np.uint8)
    for row, clip in enumerate(rows):
        for i, image in enumerate(clip):
            top = (i // columns * len(rows) + row) * cell_h
            left = i % columns * cell_w
            sheet[top : top + height, left : left + width] = image
    return sheet
