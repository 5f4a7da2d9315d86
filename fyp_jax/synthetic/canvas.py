"""A window into a place that repeats to the left and right, on which its things are painted."""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from fyp_jax.synthetic.shapes import CIRCLE, Colour, Shape, blocky, fill

Fraction = int | float
"""A length or position as a fraction of the frame's side; y counts from the top."""
Points = Sequence[tuple[Fraction, Fraction]]
PERIOD = 2.0
"""After this length a place repeats, in sides of the frame."""


class Canvas:
    """The window from `left` on, `width` wide (1 is the frame's side), of a place. All lengths are fractions.

    `tint` changes each colour, and `boxes` makes round things square, as a style asks. Where `labels` is an
    image of mode "L", what is painted is painted there too, with the value `label`.
    """

    def __init__(
        self,
        image: Image.Image,
        side: int,
        left: float = 0.0,
        tint: Callable[[Colour], Colour] = lambda colour: colour,
        boxes: bool = False,
        labels: Image.Image | None = None,
    ):
        self.image, self.side, self.left, self.tint, self.boxes = image, side, left, tint, boxes
        self.labels, self.label = labels, 0
        self._draw = ImageDraw.Draw(image)
        self._draw_labels = None if labels is None else ImageDraw.Draw(labels)
        self.shift = (0.0, 0.0)
        """Added to all positions: how far something has moved."""
        self.drop: float | None = None
        """Height after which what falls begins at the top again; None: nothing falls."""

    @property
    def width(self) -> float:
        """Width of the window, in sides of the frame."""
        return self.image.width / self.side

    def rectangle(
        self, left: Fraction, top: Fraction, right: Fraction, bottom: Fraction, colour: Colour
    ) -> None:
        """Fill an upright rectangle."""
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], colour)

    def circle(self, x: Fraction, y: Fraction, radius: Fraction, colour: Colour) -> None:
        self._add([(x, y)], colour, (radius,))

    def ellipse(self, x: Fraction, y: Fraction, half_w: Fraction, half_h: Fraction, colour: Colour) -> None:
        """Fill an upright ellipse, from its centre and half axes."""
        self._add([(x + half_w * cos, y + half_h * sin) for cos, sin in CIRCLE], colour, oval=True)

    def line(
        self, x0: Fraction, y0: Fraction, x1: Fraction, y1: Fraction, width: Fraction, colour: Colour
    ) -> None:
        """Fill a line with round ends."""
        self._add([(x0, y0), (x1, y1)], colour, (width / 2, width / 2))

    def polygon(self, points: Points, colour: Colour) -> None:
        self._add(points, colour)

    def band(self, top: Fraction, bottom: Fraction, colour: Colour) -> None:
        """A band along all of the place."""
        left, right = self.left, self.left + self.width
        self._paint([(left, top), (right, top), (right, bottom), (left, bottom)], colour)

    def hills(
        self, waves: Iterable[tuple[float, int, float]], base: float, bottom: float, colour: Colour
    ) -> None:
        """Fill from a curve to `bottom`. Each wave has an amplitude, waves in a period, and a phase."""
        first, last = math.floor(self.left * 64) - 2, math.ceil((self.left + self.width) * 64) + 2
        x = np.arange(first, last + 1) / 64  # the same points of the place in each window
        y = base + np.sum([a * np.sin(2 * np.pi * (n * x / PERIOD + phase)) for a, n, phase in waves], axis=0)
        outline = [*zip(x.tolist(), y.tolist(), strict=True), (x[-1], bottom), (x[0], bottom)]
        self._paint(outline, colour)

    def gradient(self, top: Colour, bottom: Colour, until: Fraction = 1.0) -> None:
        """Fill the rows from 0 to `until` with colours from `top` to `bottom`, the rest with `bottom`."""
        self.image.paste(self.tint(bottom), (0, 0, *self.image.size))
        rows = np.linspace(0, 1, max(2, round(until * self.image.height)))[:, None, None]
        column = (
            ((1 - rows) * np.array(self.tint(top)) + rows * np.array(self.tint(bottom)))
            .round()
            .astype(np.uint8)
        )
        self.image.paste(
            Image.fromarray(column).resize((self.image.width, len(column)), Image.Resampling.NEAREST), (0, 0)
        )

    def _add(
        self, points: Points, colour: Colour, radii: tuple[float, ...] = (0.0,), oval: bool = False
    ) -> None:
        """Paint a shape, and its repetitions, where they are in the window."""
        dx, dy = self.shift
        if self.drop is not None:
            dy = (points[0][1] + dy + 0.1) % self.drop - 0.1 - points[0][1]
        reach = max(radii) + 0.001
        low, high = min(x for x, _ in points) + dx - reach, max(x for x, _ in points) + dx + reach
        first = math.ceil((self.left - high) / PERIOD)
        last = math.floor((self.left + self.width - low) / PERIOD)
        for turn in range(first, last + 1):
            move = dx + turn * PERIOD
            self._paint([(x + move, y + dy) for x, y in points], colour, radii, oval)

    def _paint(
        self, points: Points, colour: Colour, radii: tuple[float, ...] = (0.0,), oval: bool = False
    ) -> None:
        side, left = self.side, self.left
        pixels = tuple(((x - left) * side, y * side) for x, y in points)
        shape = Shape(pixels, tuple(radius * side for radius in radii), self.tint(colour), oval=oval)
        if self.boxes:
            shape = blocky(shape)
        fill(self._draw, shape, 0.0, shape.colour)
        if self._draw_labels is not None:
            fill(self._draw_labels, shape, 0.0, self.label)
