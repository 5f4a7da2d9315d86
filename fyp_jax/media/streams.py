"""Opening a video: its stream, the decoder of that stream, and the shape of its pixels."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import NamedTuple

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition

from fyp_jax.media.errors import NotAVideoError, media_reason
from fyp_jax.media.pictures import picture_hint, read_header

DEFAULT_STREAM_SCORE = 5_000_000  # pixels that the flag of a default stream is worth, in the FFmpeg command
NO_FILM = Disposition.attached_pic | Disposition.timed_thumbnails
ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
"""Codecs whose own decoder in FFmpeg drops the alpha that WebM stores beside the colours."""


class OpenVideo(NamedTuple):
    """A video that is open for reading."""

    container: InputContainer
    stream: av.VideoStream
    decoder: av.VideoCodecContext
    """The decoder of the stream, to be used in place of the stream's own."""
    pixel_aspect: Fraction
    """Width of a pixel over its height."""


@contextmanager
def open_video(source: str | io.BytesIO, path: str | os.PathLike[str]) -> Iterator[OpenVideo]:
    """Open the video stream that FFmpeg would choose, never an attached picture.

    Raises NotAVideoError, whose message starts with `path`.
    """
    try:
        container = av.open(source, "r", metadata_errors="replace")  # titles may have any encoding
    except (FFmpegError, OSError) as error:
        hint = picture_hint(read_header(source if isinstance(source, str) else source.getvalue()))
        problem = f"is not a video, or is truncated ({media_reason(error)})"
        raise NotAVideoError(path, f"{hint}; it is a picture, not a video" if hint else problem) from error
    with container:
        if container.format.name in {"tty", "concat", "hls"}:  # FFmpeg would render the text
            raise NotAVideoError(path, "is a text or a playlist, not a video")
        if not container.streams.video:
            kinds = sorted({stream.type for stream in container.streams})
            raise NotAVideoError(path, f"has no video stream (its streams: {', '.join(kinds) or 'none'})")
        stream = _best_stream(container)
        if stream is None:
            raise NotAVideoError(path, "has no video stream, but an attached picture, such as a cover")
        if stream.codec_context is None:
            raise NotAVideoError(path, "is in a format that this FFmpeg cannot decode")
        yield OpenVideo(container, stream, _decoder(stream), _pixel_aspect(container, stream))


def _best_stream(container: InputContainer) -> av.VideoStream | None:
    """The video stream with most pixels, where a default stream counts more (`map_auto_video` in FFmpeg)."""

    def score(stream: av.VideoStream) -> int:
        codec = stream.codec_context
        pixels = codec.width * codec.height if codec else -1
        return pixels + DEFAULT_STREAM_SCORE * bool(stream.disposition & Disposition.default)

    films = [stream for stream in container.streams.video if not stream.disposition & NO_FILM]
    return max(films, key=score, default=None)


def _decoder(stream: av.VideoStream) -> av.VideoCodecContext:
    name = ALPHA_DECODERS.get(stream.codec_context.name)
    if stream.metadata.get("alpha_mode") != "1" or name not in av.codecs_available:
        return stream.codec_context
    decoder = av.CodecContext.create(name, "r")
    assert isinstance(decoder, av.VideoCodecContext)
    decoder.extradata = stream.codec_context.extradata
    return decoder


def _pixel_aspect(container: InputContainer, stream: av.VideoStream) -> Fraction:
    # Viewers ignore the density of pictures, and browsers that of a GIF.
    picture = container.format.name in {"gif", "apng", "image2"} or container.format.name.endswith("_pipe")
    return Fraction(1) if picture else (stream.sample_aspect_ratio or Fraction(1))
