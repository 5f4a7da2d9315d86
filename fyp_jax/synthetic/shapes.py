"""Rounded shapes, from which figures and places are drawn, and their painting with Pillow."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Points = tuple[tuple[float, float], ...]

OUTLINE_SHADE = 0.42
"""Factor on a colour for the outline of what has this colour."""


CIRCLE = [(math.cos(2 * math.pi * i / 28), math.sin(2 * math.pi * i / 28)) for i in range(28)]
"""Points of the unit circle."""


class Shape(NamedTuple):
    """One point and its radius: a disc. Two: a limb that tapers from one radius to the other. More: a
    polygon with corners rounded by the first radius. Lengths are in pixels."""

    points: Points
    radii: tuple[float, ...]
    colour: Colour
    part: int = 0
    """Label of the part that it belongs to, for a label map."""
    oval: bool = False
    """Whether the polygon is an ellipse, whose axes are at the quarters of its points."""


class Group(NamedTuple):
    """Shapes that have one outline in common, or none where `outline` is 0 pixels wide."""

    shapes: tuple[Shape, ...]
    outline: float = 0.0


def disc(centre: np.ndarray, radius: float, colour: Colour, part: int = 0) -> Shape:
    """A disc; lengths are in pixels."""
    return Shape(_points(centre), (radius,), colour, part)


def limb(a: np.ndarray, b: np.ndarray, radius: float, end: float, colour: Colour, part: int = 0) -> Shape:
    """A limb from a to b, whose half widths there are `radius` and `end`."""
    return Shape(_points(a, b), (radius, end), colour, part)


def polygon(points: Iterable[np.ndarray], colour: Colour, part: int = 0, rounding: float = 0.0) -> Shape:
    """A polygon whose corners are rounded by `rounding` pixels."""
    return Shape(_points(*points), (rounding,), colour, part)


def ellipse(centre: np.ndarray, right: np.ndarray, up: np.ndarray, colour: Colour, part: int = 0) -> Shape:
    """An ellipse with the half axes `right` and `up`, vectors in pixels."""
    x, y, right_x, right_y, up_x, up_y = map(float, (*centre, *right, *up))
    points = ((x + c * right_x + s * up_x, y + c * right_y + s * up_y) for c, s in CIRCLE)
    return Shape(tuple(points), (0.0,), colour, part, oval=True)


def shade(colour: Colour, factor: float) -> Colour:
    """A darker colour (factor below 1), or a lighter one, nearer to white (above 1)."""
    if factor <= 1:
        red, green, blue = (round(value * factor) for value in colour)
    else:
        red, green, blue = (round(255 - (255 - value) / factor) for value in colour)
    return red, green, blue


def blocky(shape: Shape) -> Shape:
    """The shape made of boxes: discs and ellipses become rectangles, limbs lose their round ends."""
    points, radii = np.array(shape.points), shape.radii
    if len(points) == 1:
        half = 0.9 * radii[0]
        corners = points[0] + half * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])
    elif len(points) == 2:
        along = points[1] - points[0]
        along = along / max(float(np.linalg.norm(along)), 1e-6)
        half = 0.97 * max(radii)
        across, ends = (
            half * np.array([-along[1], along[0]]),
            (points[0] - 0.3 * half * along, points[1] + 0.3 * half * along),
        )
        corners = np.stack([ends[0] - across, ends[0] + across, ends[1] + across, ends[1] - across])
    elif shape.oval:
        centre, quarter = points.mean(axis=0), len(points) // 4
        right, up = 0.9 * (points[0] - centre), 0.9 * (points[quarter] - centre)
        corners = np.stack(
            [centre - right - up, centre + right - up, centre + right + up, centre - right + up]
        )
    else:
        return shape._replace(radii=(0.0,))
    return polygon(corners, shape.colour, shape.part)


def paint(
    groups: Iterable[Group], image: Image.Image, labels: Image.Image | None = None, first: int = 0
) -> None:
    """Paint groups over an RGB image, from back to front.

    With `labels`, an image of mode "L", the parts' labels plus `first` are painted into it too.
    """
    draw_image = ImageDraw.Draw(image)
    draw_labels = None if labels is None else ImageDraw.Draw(labels)
    for shapes, outline in groups:
        if outline:
            for shape in shapes:
                fill(draw_image, shape, outline, shade(shape.colour, OUTLINE_SHADE))
        for shape in shapes:
            fill(draw_image, shape, 0.0, shape.colour)
            if draw_labels is not None:
                fill(draw_labels, shape, outline, first + shape.part)


def fill(draw: ImageDraw.ImageDraw, shape: Shape, grow: float, ink: Colour | int) -> None:
    """Fill a shape, `grow` pixels larger to all sides, with a colour, or with a label."""
    points, radii = shape.points, shape.radii
    if len(points) == 2:
        (ax, ay), (bx, by) = points
        ra, rb = radii[0] + grow, radii[1] + grow
        length = max(math.hypot(bx - ax, by - ay), 1e-6)
        nx, ny = (ay - by) / length, (bx - ax) / length
        _polygon(
            draw,
            (
                (ax + ra * nx, ay + ra * ny),
                (bx + rb * nx, by + rb * ny),
                (bx - rb * nx, by - rb * ny),
                (ax - ra * nx, ay - ra * ny),
            ),
            ink,
        )
        _disc(draw, points[0], ra, ink)
        _disc(draw, points[1], rb, ink)
        return
    radius = radii[0] + grow
    if len(points) > 2:
        _polygon(draw, points, ink)
        if radius >= 0.5:
            for (ax, ay), (bx, by) in zip(points, (*points[1:], points[0]), strict=True):
                fill(draw, Shape(((ax, ay), (bx, by)), (radius, radius), shape.colour), 0.0, ink)
    else:
        for centre in points:  # one
            _disc(draw, centre, radius, ink)


def _polygon(draw: ImageDraw.ImageDraw, points: Points, ink: Colour | int) -> None:
    draw.polygon([(_floor(x), _floor(y)) for x, y in points], fill=ink)


def _disc(draw: ImageDraw.ImageDraw, centre: tuple[float, float], radius: float, ink: Colour | int) -> None:
    x, y = centre
    draw.ellipse((_floor(x - radius), _floor(y - radius), _floor(x + radius), _floor(y + radius)), fill=ink)


def _floor(value: float) -> int:
    """Round down. Pillow rounds towards 0, so what leaves the image to the left would change its shape."""
    return math.floor(value + 1e-6)


def _points(*arrays: np.ndarray) -> Points:
    return tuple((float(x), float(y)) for x, y in arrays)
