"""Rounded shapes, from which figures and places are drawn, and their painting with Pillow."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Points = tuple[tuple[float, float], ...]

OUTLINE_SHADE = 0.42
"""Factor on a colour for the outline of what has this colour."""


_CIRCLE = np.stack([f(np.arange(28) * 2 * np.pi / 28) for f in (np.cos, np.sin)], axis=1)


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
    return Shape(_points(centre), (radius,), colour, part)


def limb(a: np.ndarray, b: np.ndarray, radius: float, end: float, colour: Colour, part: int = 0) -> Shape:
    """A limb from a to b, whose half widths there are `radius` and `end`."""
    return Shape(_points(a, b), (radius, end), colour, part)


def polygon(points: Iterable[np.ndarray], colour: Colour, part: int = 0, rounding: float = 0.0) -> Shape:
    return Shape(_points(*points), (rounding,), colour, part)


def ellipse(centre: np.ndarray, right: np.ndarray, up: np.ndarray, colour: Colour, part: int = 0) -> Shape:
    """An ellipse with the half axes `right` and `up`, vectors in pixels."""
    points = centre + _CIRCLE @ np.stack([right, up])
    return Shape(tuple(map(tuple, points.tolist())), (0.0,), colour, part, oval=True)


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
                _fill(draw_image, shape, outline, shade(shape.colour, OUTLINE_SHADE))
        for shape in shapes:
            _fill(draw_image, shape, 0.0, shape.colour)
            if draw_labels is not None:
                _fill(draw_labels, shape, outline, first + shape.part)


def _fill(draw: ImageDraw.ImageDraw, shape: Shape, grow: float, fill: Colour | int) -> None:
    points, radii = shape.points, shape.radii
    if len(points) == 1:
        draw.circle(points[0], radii[0] + grow, fill=fill)
    elif len(points) == 2:
        (ax, ay), (bx, by) = points
        ra, rb = radii[0] + grow, radii[1] + grow
        length = max(float(np.hypot(bx - ax, by - ay)), 1e-6)
        nx, ny = (ay - by) / length, (bx - ax) / length
        draw.polygon(
            [
                (ax + ra * nx, ay + ra * ny),
                (bx + rb * nx, by + rb * ny),
                (bx - rb * nx, by - rb * ny),
                (ax - ra * nx, ay - ra * ny),
            ],
            fill=fill,
        )
        draw.circle((ax, ay), ra, fill=fill)
        draw.circle((bx, by), rb, fill=fill)
    else:
        draw.polygon(points, fill=fill)
        radius = radii[0] + grow
        if radius >= 0.5:
            draw.line([*points, points[0]], fill=fill, width=round(2 * radius))
            for point in points:
                draw.circle(point, radius, fill=fill)


def _points(*arrays: np.ndarray) -> Points:
    return tuple((float(x), float(y)) for x, y in arrays)
