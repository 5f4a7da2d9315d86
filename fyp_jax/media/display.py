"""Frames and pictures as players show them: RGB in 0..255, on a background, with square pixels, upright.

Every reader of videos and pictures goes through `frame_to_rgb` or `picture_to_rgb`, and nothing else decides
geometry or colour. The steps of a frame, in this order:

1. Colours to RGB by the matrix (BT.601, 709 or 2020) and the range (full or limited) that the frame is tagged
   with; without a tag BT.601 and limited range, as swscale assumes.
2. Transparent pixels over the background.
3. Pixels made square: the height stays, the width is scaled by the pixel aspect ratio.
4. The display matrix, rounded to the nearest of the eight orientations of a picture.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

import av
import numpy as np
import PIL.Image
from av.filter import Graph
from av.sidedata.sidedata import Type as SideDataType
from jaxtyping import UInt8
from PIL import ImageOps

from fyp_jax.media.images import Image

Background = Literal["black", "white"]
"""What shows through transparent pixels: black below poses, white below training frames."""

SWSCALE_MATRICES = {0, 1, 2, 4, 5, 6, 7, 9}
"""Colour matrices (ITU-T H.273, table 4) that swscale converts; 0 is RGB and 2 is no tag."""
MAX_PIXEL_ASPECT = 10
EXIF_ORIENTATION = 0x0112
NEWEST_SIDE_DATA = 64  # above the types of side data that FFmpeg has


class DisplayError(ValueError):
    """A frame or picture that cannot be shown right; the message follows its name."""


def frame_to_rgb(frame: av.VideoFrame, pixel_aspect: Fraction, background: Background) -> Image:
    """A decoded frame as a player shows it; `pixel_aspect` is a pixel's width over its height.

    Raises DisplayError for a colour matrix or a pixel aspect ratio that is not supported.
    """
    if frame.colorspace not in SWSCALE_MATRICES and frame.format.name.startswith(("yuv", "nv", "p0")):
        raise DisplayError(
            f"its colour matrix is number {int(frame.colorspace)} of ITU-T H.273; "
            "convert it to BT.709, for instance with FFmpeg's filter colorspace or zscale"
        )
    # One thread: PyAV would start one for each core, for each frame, and many data workers do this at a time.
    image = frame.to_ndarray(format="rgb24", threads=1)
    if has_alpha(frame.format):
        alpha = frame.to_ndarray(format="rgba", threads=1)[..., 3]
        # Some decoders leave the alpha of a palette at 0, although nothing is transparent.
        if alpha.any() or not frame.format.has_palette:
            image = _over(image, alpha, background)
    return orient(_square_pixels(image, pixel_aspect), display_matrix(frame))


def has_alpha(pixels: av.VideoFormat) -> bool:
    """Whether frames of a pixel format can be transparent."""
    return pixels.has_palette or any(component.is_alpha for component in pixels.components)


def display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """a, b, c, d of a frame's display matrix: a pixel at x, y is shown at a x + c y, b x + d y, y down.

    The numbers have a common scale, 65536 for a matrix that does not scale. It is (1, 0, 0, 1) without a tag.
    """
    try:
        tag = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV reads no side data where one has a type that it does not know, such as EXIF
        tag = _with_known_side_data(frame).side_data.get("DISPLAYMATRIX")
    if tag is None:
        return 1, 0, 0, 1
    a, b, _, c, d, *_ = (int(number) for number in np.frombuffer(bytes(tag), np.int32))
    return a, b, c, d


def orient(image: Image, matrix: Sequence[int]) -> UInt8[np.ndarray, "shown_h shown_w 3"]:
    """Turn and mirror an image by a, b, c, d of a display matrix, rounded to the nearest orientation."""
    a, b, c, d = matrix
    if abs(b) + abs(c) > abs(a) + abs(d):  # rows become columns
        image, right, down = image.swapaxes(0, 1), c, b
    else:
        right, down = a, d
    return np.ascontiguousarray(image[:: -1 if down < 0 else 1, :: -1 if right < 0 else 1])


def picture_to_rgb(picture: PIL.Image.Image, background: Background) -> Image:
    """A picture as viewers show it: upright by its EXIF tag, scaled to 8 bits, on a background.

    16-bit grey is divided by 257, and float in 0..1 multiplied by 255; integers and floats that are in 0..255
    stay as they are. Raises DisplayError for other numbers, and what Pillow raises for a damaged picture.
    """
    picture = _to_8_bits(ImageOps.exif_transpose(picture))
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        picture = PIL.Image.alpha_composite(PIL.Image.new("RGBA", rgba.size, background), rgba)
    return np.asarray(picture.convert("RGB"))


def picture_size(picture: PIL.Image.Image) -> tuple[int, int]:
    """Height and width of a picture as `picture_to_rgb` gives it, from its header alone."""
    width, height = picture.size
    turned = picture.getexif().get(EXIF_ORIENTATION, 1) >= 5
    return (width, height) if turned else (height, width)


def _over(image: Image, alpha: UInt8[np.ndarray, "h w"], background: Background) -> Image:
    if alpha.min(initial=255) == 255:
        return image
    rgba = PIL.Image.fromarray(np.dstack([image, alpha]))
    below = PIL.Image.new("RGBA", rgba.size, background)
    return np.asarray(PIL.Image.alpha_composite(below, rgba).convert("RGB"))


def _square_pixels(image: Image, pixel_aspect: Fraction) -> UInt8[np.ndarray, "h shown_w 3"]:
    height, stored_width = image.shape[:2]
    width = max(1, round(stored_width * pixel_aspect))
    if width == stored_width:
        return image
    if not 1 <= MAX_PIXEL_ASPECT * pixel_aspect <= MAX_PIXEL_ASPECT**2:
        raise DisplayError(
            f"its pixel aspect ratio is {pixel_aspect.numerator}:{pixel_aspect.denominator}, which no camera "
            "has; set the true one, for instance with FFmpeg's filter setsar"
        )
    return np.asarray(PIL.Image.fromarray(image).resize((width, height), PIL.Image.Resampling.BICUBIC))


def _with_known_side_data(frame: av.VideoFrame) -> av.VideoFrame:
    """The same frame without the side data whose type PyAV does not know."""
    graph = Graph()
    second, pixels = Fraction(1), frame.format
    nodes = [graph.add_buffer(width=frame.width, height=frame.height, format=pixels, time_base=second)]
    known = {kind.value for kind in SideDataType}
    for kind in range(NEWEST_SIDE_DATA):
        if kind not in known:
            nodes.append(graph.add("sidedata", f"mode=delete:type={kind}"))
    graph.link_nodes(*nodes, graph.add("buffersink")).configure()
    graph.push(frame)
    known_alone = graph.pull()
    assert isinstance(known_alone, av.VideoFrame)
    return known_alone


def _to_8_bits(picture: PIL.Image.Image) -> PIL.Image.Image:
    if not picture.mode.startswith(("I", "F")):
        return picture
    values = np.asarray(picture).astype(np.float64)
    least, most = values.min(), values.max()
    if not (least >= 0 and most <= 65535):  # false for NaN, too
        raise DisplayError(f"its pixels are numbers from {least:g} to {most:g}; save it with 8 or 16 bits")
    if picture.mode.startswith("I;16") or (picture.mode == "I" and most > 255):
        scaled = values / 257
    elif picture.mode == "F" and most <= 1:
        scaled = values * 255
    elif most <= 255:
        return picture  # Pillow converts these as they are
    else:
        raise DisplayError(f"its pixels are floats up to {most:g}; save it with 8 or 16 bits")
    grey = PIL.Image.fromarray(np.rint(scaled).astype(np.uint8))
    clear = picture.info.get("transparency")
    if isinstance(clear, int):  # the grey level that is transparent, in 16 bits
        grey.putalpha(PIL.Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey
