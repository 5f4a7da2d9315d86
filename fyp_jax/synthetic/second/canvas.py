"""A window into a place that repeats to the left and right, on which its things are painted."""

from collections.abc import Callable, Iterable

import numpy as np
from PIL import Image

from fyp_jax.synthetic.second.shapes import Colour, Group, Shape, blocky, ellipse, limb, paint, polygon

Fraction = int | float
"""A length or position as a fraction of the frame's side; y counts from the top."""
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
        self.shift = (0.0, 0.0)
        """Added to all positions: how far something has moved."""
        self.drop: float | None = None
        """Height after which what falls begins at the top again; None: nothing falls."""

    @property
    def width(self) -> float:
        return self.image.width / self.side

    def columns(self) -> np.ndarray:
        """Positions along the window, for outlines of hills."""
        return np.linspace(self.left, self.left + self.width, max(2, round(64 * self.width)) + 1)

    def rectangle(
        self, left: Fraction, top: Fraction, right: Fraction, bottom: Fraction, colour: Colour
    ) -> None:
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], colour)

    def circle(self, x: Fraction, y: Fraction, radius: Fraction, colour: Colour) -> None:
        self.ellipse(x, y, radius, radius, colour)

    def ellipse(self, x: Fraction, y: Fraction, half_w: Fraction, half_h: Fraction, colour: Colour) -> None:
        right, up = np.array([half_w, 0.0]), np.array([0.0, half_h])
        self._add(ellipse(np.array([x, y]), right, up, colour))

    def line(
        self, x0: Fraction, y0: Fraction, x1: Fraction, y1: Fraction, width: Fraction, colour: Colour
    ) -> None:
        self._add(limb(np.array([x0, y0]), np.array([x1, y1]), width / 2, width / 2, colour))

    def polygon(self, points: Iterable[tuple[Fraction, Fraction]], colour: Colour) -> None:
        self._add(polygon((np.array(point) for point in points), colour))

    def band(self, top: Fraction, bottom: Fraction, colour: Colour) -> None:
        """A band along all of the place."""
        self._paint(polygon(self._box(top, bottom), colour))

    def hills(
        self, waves: Iterable[tuple[float, int, float]], base: float, bottom: float, colour: Colour
    ) -> None:
        """Fill from a curve to `bottom`. Each wave has an amplitude, waves in a period, and a phase."""
        x = self.columns()
        y = base + sum(a * np.sin(2 * np.pi * (n * x / PERIOD + phase)) for a, n, phase in waves)
        outline = [*np.stack([x, y], axis=1), np.array([x[-1], bottom]), np.array([x[0], bottom])]
        self._paint(polygon(outline, colour))

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

    def _box(self, top: Fraction, bottom: Fraction) -> list[np.ndarray]:
        right = self.left + self.width
        return [
            np.array(point)
            for point in ((self.left, top), (right, top), (right, bottom), (self.left, bottom))
        ]

    def _add(self, shape: Shape) -> None:
        """Paint a shape, and its repetitions, where they are in the window."""
        points, reach = np.array(shape.points) + self.shift, max(shape.radii)
        low, high = points[:, 0].min() - reach, points[:, 0].max() + reach
        if self.drop is not None:
            points[:, 1] += (points[0, 1] + 0.1) % self.drop - 0.1 - points[0, 1]
        first = int(np.ceil((self.left - high) / PERIOD))
        last = int(np.floor((self.left + self.width - low) / PERIOD))
        for turn in range(first, last + 1):
            self._paint(shape._replace(points=points + np.array([turn * PERIOD, 0.0])))

    def _paint(self, shape: Shape) -> None:
        pixels = (np.array(shape.points) - [self.left, 0.0]) * self.side
        radii = tuple(radius * self.side for radius in shape.radii)
        shape = Shape(
            tuple(map(tuple, pixels.tolist())), radii, self.tint(shape.colour), self.label, shape.oval
        )
        paint([Group((blocky(shape) if self.boxes else shape,))], self.image, self.labels)
