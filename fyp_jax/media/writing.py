"""Writing clips and images. All writers are deterministic: equal frames give equal bytes."""

import os
from collections.abc import Iterable
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import PIL.Image
from av.error import FFmpegError
from av.video.reformatter import Colorspace
from PIL import GifImagePlugin

from fyp_jax.errors import UserError, wrap_write_errors
from fyp_jax.media.errors import media_reason
from fyp_jax.media.images import Frames, Image


def write_mp4(path: str | os.PathLike[str], frames: Frames, fps: int | float) -> None:
    """Write frames as H.264 (crf 18, yuv420p, BT.709); fps is in frames per second.

    Raises UserError where the file cannot be written, ValueError for an odd height or width, for no frames,
    and for an fps of 0.
    """
    _check(frames, fps)
    height, width = frames.shape[1:3]
    stream_mp4(path, frames, fps, height=height, width=width)


def stream_mp4(
    path: str | os.PathLike[str], images: Iterable[Image], fps: int | float, *, height: int, width: int
) -> None:
    """Write images as `write_mp4` does, one after the other, so that a long video needs little memory.

    Errors are those of `write_mp4`, but no images make an empty video.
    """
    if height % 2 or width % 2:
        raise ValueError(f"H.264 in yuv420p needs an even height and width, got {height}x{width}")
    with wrap_write_errors(path) as file:
        try:
            _encode_mp4(str(file.absolute()), images, fps, height, width)
        except FFmpegError as error:
            raise UserError(f"{path}: cannot be written ({media_reason(error)})") from error


def _encode_mp4(file: str, images: Iterable[Image], fps: int | float, height: int, width: int) -> None:
    with av.open(file, "w", format="mp4", options={"movflags": "+faststart"}) as container:
        # One thread, because the bytes depend on the number of threads. No B-frames, because x264's search
        # for them gives different files for equal small frames (tests/test_media.py).
        options = {"crf": "18", "threads": "1", "bf": "0"}
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=options)
        stream.height, stream.width = height, width
        stream.pix_fmt = "yuv420p"
        bt709 = stream.codec_context  # players guess the matrix from the size where it is not given
        bt709.colorspace = bt709.color_primaries = bt709.color_trc = 1
        bt709.color_range = 1
        for image in images:
            rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            yuv = rgb.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709, threads=1)
            container.mux(stream.encode(yuv))
        container.mux(stream.encode())


def write_gif(path: str | os.PathLike[str], frames: Frames, fps: int | float) -> None:
    """Write frames as a GIF that repeats forever, each frame with its own palette of 256 colours.

    fps is in frames per second, at most 50. Every frame is written (Pillow's own `save` merges equal frames).
    Raises UserError where the file cannot be written, ValueError for no frames and for another fps.
    """
    _check(frames, fps)
    if fps > 50:
        raise ValueError(f"players slow down a GIF of more than 50 fps, got {fps}")
    images = [PIL.Image.fromarray(frame).quantize(256) for frame in frames]
    # A GIF counts in 1/100 s: the times are rounded, and not the durations, so that errors do not add up.
    ends = [round(100 * i / fps) for i in range(len(images) + 1)]
    with wrap_write_errors(path) as file, file.open("wb") as out:
        out.writelines(GifImagePlugin.getheader(images[0], info={"loop": 0})[0])
        for image, (begin, end) in zip(images, pairwise(ends), strict=True):
            milliseconds = 10 * (end - begin)
            out.writelines(GifImagePlugin.getdata(image, duration=milliseconds, include_color_table=True))
        out.write(b";")


def write_png(path: str | os.PathLike[str], image: Image) -> None:
    """Write an RGB image as PNG. Raises UserError where the file cannot be written."""
    with wrap_write_errors(path) as file:
        PIL.Image.fromarray(image).save(file, format="PNG")


def _check(frames: Frames, fps: int | float) -> None:
    if len(frames) == 0 or not fps > 0:
        raise ValueError(f"a clip needs frames and an fps above 0, got {len(frames)} frames at {fps} fps")
