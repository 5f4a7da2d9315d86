"""Clips and images into files. All writers are deterministic: the same frames give the same bytes."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import PIL.Image
from av.error import FFmpegError
from av.video.reformatter import Colorspace
from PIL import GifImagePlugin

from fyp_jax.media.errors import MediaError, media_reason
from fyp_jax.media.images import Clip, Image


@contextmanager
def wrap_write_errors(path: str | os.PathLike[str]) -> Iterator[Path]:
    """The path, its folder made; MediaError where the disk says no."""
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        yield Path(path)
    except (FFmpegError, OSError) as error:
        raise MediaError(path, f"cannot be written ({media_reason(error)})") from error


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
        wrap_write_errors(path) as file,
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
    images = [PIL.Image.fromarray(frame).quantize(256) for frame in frames]
    # a GIF counts in 1/100 s: round the ends of the frames, so that the clip as a whole keeps time
    ends = [round(100 * i / fps) for i in range(len(images) + 1)]
    with wrap_write_errors(path) as file, file.open("wb") as out:
        out.writelines(GifImagePlugin.getheader(images[0], info={"loop": 0})[0])
        for image, (begin, end) in zip(images, pairwise(ends), strict=True):
            milliseconds = 10 * (end - begin)
            out.writelines(GifImagePlugin.getdata(image, duration=milliseconds, include_color_table=True))
        out.write(b";")


def write_png(path: str | os.PathLike[str], image: Image) -> None:
    """One RGB picture, lossless."""
    with wrap_write_errors(path) as file:
        PIL.Image.fromarray(image).save(file, format="PNG")
