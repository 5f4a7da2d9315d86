"""What can be wrong with a media file; each message opens with its path."""

import os
from pathlib import Path

from fyp_jax.errors import UserError


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


def media_reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
