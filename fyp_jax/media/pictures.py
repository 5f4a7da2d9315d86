"""Opening pictures, and videos that Pillow reads and FFmpeg does not: animated WebP."""

import io
import os
import warnings
from collections.abc import Iterator
from functools import cache
from importlib import import_module

import PIL.Image
from PIL import features

PICTURE_ERRORS = (OSError, SyntaxError, ValueError, RuntimeError, PIL.Image.DecompressionBombError)
"""What Pillow raises for pictures that it cannot open or decode."""

HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
AVIF_BRANDS = {b"avif", b"avis"}
HEADER_BYTES = 64


class UnsupportedPictureError(PIL.UnidentifiedImageError):
    """A picture in a format that needs a package; the message says which, and follows "it" or a name."""


def open_picture(source: str | os.PathLike[str] | bytes) -> PIL.Image.Image:
    """Open a picture at a path, or encoded in bytes, to be used in a `with`; pixels are decoded later.

    HEIC needs the extra `heic`. Raises UnsupportedPictureError where that is missing, PICTURE_ERRORS for
    other files that are no picture.
    """
    register_heic()
    try:
        with warnings.catch_warnings():  # what is too large is refused, or read: no line beside that
            warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
            return PIL.Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    except PIL.UnidentifiedImageError:
        if hint := picture_hint(read_header(source)):
            raise UnsupportedPictureError(hint) from None
        raise


def read_header(source: str | os.PathLike[str] | bytes) -> bytes:
    """The first bytes of a file or of encoded bytes, by which formats are told apart."""
    if isinstance(source, bytes):
        return source[:HEADER_BYTES]
    with open(source, "rb") as file:
        return file.read(HEADER_BYTES)


def picture_hint(header: bytes) -> str | None:
    """What to do about a HEIC or AVIF picture that could not be opened; None for other files."""
    if header[4:8] != b"ftyp":
        return None
    length = min(int.from_bytes(header[:4], "big"), len(header))
    brands = {header[8:12], *(header[at : at + 4] for at in range(16, length, 4))}
    if brands & AVIF_BRANDS:
        if features.check("avif"):
            return "is AVIF, and damaged or cut off"
        return "is AVIF, which this Pillow does not read: pip install 'pillow>=11.3', or convert it to PNG"
    if brands & HEIC_BRANDS:
        if register_heic():
            return "is HEIC, and damaged or cut off"
        return "is HEIC: pip install -e '.[heic]' to read it, or convert it to JPEG or PNG"
    return None


@cache
def register_heic() -> bool:
    """Let Pillow open HEIC where `pillow-heif` is installed; whether it is."""
    try:
        import_module("pillow_heif").register_heif_opener()
    except ImportError:
        return False
    return True


def is_animated_webp(header: bytes) -> bool:
    """Whether a file that starts with these bytes is an animated WebP."""
    webp = header[:4] == b"RIFF" and header[8:16] == b"WEBPVP8X" and len(header) > 20
    return webp and bool(header[20] & 2)  # a bit of the flags of the VP8X chunk


def animated_webp_frames(source: str | os.PathLike[str] | bytes) -> Iterator[tuple[PIL.Image.Image, int]]:
    """The frames of an animated WebP on its whole canvas, and how many ms each is shown, one by one.

    An image is valid until the next one. Raises PICTURE_ERRORS.
    """
    with open_picture(source) as animation:
        for index in range(getattr(animation, "n_frames", 1)):
            animation.seek(index)
            animation.load()
            yield animation, int(animation.info.get("duration", 0))
