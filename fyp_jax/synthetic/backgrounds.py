"""The backgrounds of the synthetic world, painted at any size. A seed moves their details a little."""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Fraction = int | float
"""A length or position as a fraction of the image's side; positions count from the upper left corner."""


class _Canvas:
    """A square image; all positions and lengths are fractions of its side."""

    def __init__(self, side: int, rng: np.random.Generator):
        self.side, self.rng = side, rng
        self.image = Image.new("RGB", (side, side))
        self._draw = ImageDraw.Draw(self.image)

    def jitter(self, value: Fraction, spread: Fraction) -> float:
        """A number sampled uniformly from value - spread to value + spread."""
        return float(value + self.rng.uniform(-spread, spread))

    def gradient(self, top: Colour, bottom: Colour, until: Fraction = 1.0) -> None:
        """Fill the rows from 0 to `until`, with colours from `top` to `bottom`."""
        rows = np.linspace(0, 1, max(2, round(until * self.side)))[:, None, None]
        band = (1 - rows) * np.array(top) + rows * np.array(bottom)
        band = np.repeat(band, self.side, axis=1).round().astype(np.uint8)
        self.image.paste(Image.fromarray(band), (0, 0))

    def rectangle(
        self, left: Fraction, top: Fraction, right: Fraction, bottom: Fraction, colour: Colour
    ) -> None:
        left, top, right, bottom = (value * self.side for value in (left, top, right, bottom))
        self._draw.rectangle((left, top, right, bottom), fill=colour)

    def circle(self, x: Fraction, y: Fraction, radius: Fraction, colour: Colour) -> None:
        self._draw.circle((x * self.side, y * self.side), radius * self.side, fill=colour)

    def ellipse(self, x: Fraction, y: Fraction, half_w: Fraction, half_h: Fraction, colour: Colour) -> None:
        left, top, right, bottom = x - half_w, y - half_h, x + half_w, y + half_h
        self._draw.ellipse(tuple(value * self.side for value in (left, top, right, bottom)), fill=colour)

    def polygon(self, points: list[tuple[Fraction, Fraction]], colour: Colour) -> None:
        self._draw.polygon([(x * self.side, y * self.side) for x, y in points], fill=colour)


def _beach(c: _Canvas) -> None:
    c.gradient((96, 184, 244), (190, 226, 250), 0.42)
    c.rectangle(0, 0.40, 1, 0.56, (32, 168, 190))
    c.rectangle(0, 0.535, 1, 0.56, (214, 244, 240))
    c.rectangle(0, 0.56, 1, 1, (240, 212, 144))
    x = c.jitter(0.13, 0.04)
    c.rectangle(x - 0.012, 0.42, x + 0.012, 0.78, (150, 110, 70))
    c.polygon([(x - 0.15, 0.47), (x, 0.34), (x + 0.15, 0.47)], (228, 70, 60))


def _sea(c: _Canvas) -> None:
    c.gradient((150, 196, 230), (206, 226, 238), 0.30)
    c.rectangle(0, 0.28, 1, 1, (18, 78, 156))
    for row in np.arange(0.36, 1.0, 0.13):
        shift = c.jitter(0.0, 0.05)
        for x in np.arange(-0.1, 1.2, 0.32):
            c.ellipse(x + shift + (0.16 if round(row * 100) % 2 else 0), row, 0.12, 0.014, (120, 176, 224))


def _forest(c: _Canvas) -> None:
    c.gradient((74, 110, 84), (44, 84, 54), 0.75)
    for x in (0.06, 0.25, 0.47, 0.70, 0.92):
        x = c.jitter(x, 0.025)
        c.rectangle(x - 0.035, 0.12, x + 0.035, 0.8, (62, 42, 28))
        c.circle(x, 0.10, 0.16, (24, 66, 32))
    c.rectangle(0, 0.76, 1, 1, (48, 66, 28))


def _snow(c: _Canvas) -> None:
    c.gradient((150, 176, 206), (190, 208, 228), 0.55)
    c.rectangle(0, 0.5, 1, 1, (202, 218, 242))
    for x, size in ((0.12, 0.2), (0.86, 0.24), (0.62, 0.12)):
        x = c.jitter(x, 0.03)
        for level in range(3):
            y, half = 0.52 - size * 0.62 * level, size * (0.5 - 0.12 * level)
            c.polygon([(x - half, y), (x, y - size * 0.8), (x + half, y)], (40, 92, 92))
            c.polygon(
                [(x - half * 0.4, y - size * 0.48), (x, y - size * 0.8), (x + half * 0.4, y - size * 0.48)],
                (225, 234, 248),
            )


def _desert(c: _Canvas) -> None:
    c.gradient((250, 206, 130), (254, 230, 180), 0.5)
    peak = c.jitter(0.3, 0.05)
    c.rectangle(0, 0.48, 1, 0.62, (238, 184, 110))
    c.polygon([(-0.2, 0.62), (peak, 0.40), (0.85, 0.62)], (226, 152, 78))
    c.rectangle(0, 0.58, 1, 1, (214, 138, 64))
    c.polygon([(0.2, 1.0), (0.75, 0.7), (1.3, 1.0)], (196, 118, 50))
    x = c.jitter(0.87, 0.03)
    for left, top, right, bottom in (
        (-0.025, 0.36, 0.025, 0.64),
        (-0.09, 0.44, -0.05, 0.54),
        (-0.09, 0.51, 0, 0.54),
    ):
        c.rectangle(x + left, top, x + right, bottom, (52, 122, 60))


def _moon(c: _Canvas) -> None:
    c.gradient((8, 8, 38), (14, 14, 56), 0.62)
    for x, y in ((0.1, 0.1), (0.28, 0.3), (0.46, 0.08), (0.6, 0.22), (0.93, 0.36), (0.08, 0.46), (0.7, 0.44)):
        c.circle(c.jitter(x, 0.02), y, 0.010, (240, 240, 255))
    x = c.jitter(0.82, 0.03)
    c.circle(x, 0.15, 0.1, (60, 130, 220))
    c.circle(x - 0.03, 0.13, 0.045, (80, 180, 110))
    c.rectangle(0, 0.6, 1, 1, (158, 158, 166))
    for x, y, size in ((0.16, 0.72, 0.08), (0.8, 0.82, 0.11), (0.42, 0.92, 0.09)):
        c.ellipse(c.jitter(x, 0.03), y, size, size * 0.4, (118, 118, 128))


def _street(c: _Canvas) -> None:
    c.gradient((186, 204, 216), (206, 216, 222), 0.3)
    for left, top, colour in (
        (0.0, 0.10, (176, 96, 78)),
        (0.34, 0.2, (148, 132, 118)),
        (0.66, 0.06, (190, 160, 120)),
    ):
        top = c.jitter(top, 0.03)
        c.rectangle(left, top, left + 0.33, 0.68, colour)
        for x in (0.06, 0.19):
            for y in np.arange(top + 0.05, 0.6, 0.15):
                c.rectangle(left + x, float(y), left + x + 0.075, float(y) + 0.08, (64, 76, 100))
    c.rectangle(0, 0.66, 1, 0.74, (176, 176, 172))
    c.rectangle(0, 0.74, 1, 1, (78, 80, 86))
    shift = c.jitter(0.0, 0.08)
    for x in np.arange(-0.2, 1.2, 0.34):
        c.rectangle(float(x) + shift, 0.87, float(x) + shift + 0.17, 0.90, (238, 230, 190))


def _park(c: _Canvas) -> None:
    c.gradient((110, 178, 240), (186, 220, 246), 0.5)
    c.rectangle(0, 0.5, 1, 1, (132, 202, 84))
    for x, size in ((0.14, 0.15), (0.88, 0.17)):
        x = c.jitter(x, 0.03)
        c.rectangle(x - 0.025, 0.36, x + 0.025, 0.6, (128, 88, 52))
        c.circle(x, 0.32, size, (62, 150, 62))
    middle = c.jitter(0.5, 0.04)
    c.polygon(
        [(middle - 0.06, 0.5), (middle + 0.06, 0.5), (middle + 0.3, 1), (middle - 0.3, 1)], (224, 204, 166)
    )


def _simple(c: _Canvas) -> None:
    c.gradient((206, 190, 218), (182, 166, 200))


BACKGROUNDS: dict[str, tuple[str, Callable[[_Canvas], None]]] = {
    "beach": ("on the beach", _beach),
    "sea": ("on the sea", _sea),
    "forest": ("in the forest", _forest),
    "snow": ("in the snow", _snow),
    "desert": ("in the desert", _desert),
    "moon": ("on the moon", _moon),
    "street": ("on the street", _street),
    "park": ("in the park", _park),
    "simple": ("simple background", _simple),
}
"""For each background its words in a caption, and the function that paints it."""


def paint_background(name: str, side: int, seed: int) -> Image.Image:
    """Paint a background of `BACKGROUNDS`: an RGB image of side x side pixels.

    A seed places the details at the same fractions of the side at every size.
    """
    canvas = _Canvas(side, np.random.default_rng([seed, 29]))
    BACKGROUNDS[name][1](canvas)
    return canvas.image
