"""What the header of a video file says of its length, speed and size, before anything is decoded."""

import os
from typing import NamedTuple

import av
from av.error import FFmpegError


class Header(NamedTuple):
    """Length, speed and size of a video as its header has them, which may be wrong; 0 where none is said."""

    num_frames: int
    fps: float
    """Frames per second on average."""
    width: int = 0
    height: int = 0
    """Pixels, as they are stored."""


def read_header(path: str | os.PathLike[str]) -> Header:
    """The header of a video; zeros for a file that cannot be read, of which decoding it tells the reason."""
    try:
        with av.open(os.path.abspath(path), "r", metadata_errors="replace") as container:
            stream = container.streams.best("video")
            rate = float(getattr(stream, "average_rate", None) or 0)
            seconds = (container.duration or 0) / av.time_base
            frames = stream.frames if stream is not None else 0
            width, height = (getattr(stream, name, None) or 0 for name in ("width", "height"))
            return Header(frames or round(seconds * rate), rate, width, height)
    except (FFmpegError, OSError):
        return Header(0, 0.0)
