"""Errors of media files: videos, images and poses."""

import os
from pathlib import Path

from fyp_jax.errors import UserError


class MediaError(UserError):
    """A media file cannot be read; the message starts with its path."""

    def __init__(self, path: str | os.PathLike[str], problem: str):
        super().__init__(f"{os.fspath(path)}: {problem}")
        self.path = Path(path)


class MissingFileError(MediaError):
    """There is no file or folder at a path."""


class NotAVideoError(MediaError):
    """No frame of a file can be decoded."""


class BrokenVideoError(MediaError):
    """A frame that is needed cannot be decoded."""


class ClipTooShort(MediaError):  # noqa: N818  (the name states the fact, as a caller does)
    """A clip has fewer frames than `num_frames` frames at this stride and start need."""

    def __init__(
        self, path: str | os.PathLike[str], *, clip_length: int, num_frames: int, stride: int, start: int
    ):
        max_stride = (clip_length - 1 - start) // (num_frames - 1) if num_frames > 1 else 0
        max_frames = (clip_length - 1 - start) // stride + 1
        fits = []
        if max_stride >= 1:
            fits.append(f"stride={max_stride} at most for num_frames={num_frames}")
        if max_frames >= 1:
            fits.append(f"num_frames={max_frames} at most with stride={stride} start={start}")
        if not fits:
            fits.append(f"start={clip_length - 1} at most" if clip_length else "nothing, it has no frame")
        super().__init__(
            path,
            f"has {clip_length} frames, but num_frames={num_frames} stride={stride} start={start} needs "
            f"{start + (num_frames - 1) * stride + 1}; what fits: {', or '.join(fits)}",
        )
        self.clip_length, self.num_frames, self.stride, self.start = clip_length, num_frames, stride, start


def media_reason(error: Exception) -> str:
    """The system's words for an error, or else the error's own."""
    return getattr(error, "strerror", None) or str(error)
