"""Things that stand or move in places: trees, houses, clouds, cars. All lengths are fractions of the side."""

import numpy as np

from fyp_jax.synthetic.canvas import PERIOD, Canvas
from fyp_jax.synthetic.shapes import Colour, shade

WALLS = (
    (214, 128, 104), (226, 178, 118), (160, 176, 196), (196, 164, 150), (238, 214, 172), (150, 184, 160),
    (206, 150, 160),
)  # fmt: skip
ROOFS = ((168, 74, 62), (110, 84, 96), (92, 110, 136), (140, 96, 70))
LEAVES = ((92, 174, 84), (76, 156, 92), (128, 186, 78), (206, 156, 70))
GLASS = (96, 122, 156)
CARS = ((222, 60, 60), (60, 120, 214), (250, 200, 70), (246, 246, 244), (70, 170, 130))


def round_tree(c: Canvas, x: float, y: float, size: float, leaves: Colour) -> None:
    """A tree whose trunk stands at (x, y)."""
    c.rectangle(x - 0.14 * size, y - 0.9 * size, x + 0.14 * size, y, (146, 102, 66))
    for dx, dy, radius in ((-0.45, -1.05, 0.55), (0.45, -1.1, 0.55), (0.0, -1.55, 0.7)):
        c.circle(x + dx * size, y + dy * size, radius * size, leaves)
    c.circle(x - 0.2 * size, y - 1.65 * size, 0.3 * size, shade(leaves, 1.25))


def pine(c: Canvas, x: float, y: float, size: float, leaves: Colour, snow: bool) -> None:
    """A pine whose trunk stands at (x, y), its branches white with `snow`."""
    c.rectangle(x - 0.08 * size, y - 0.25 * size, x + 0.08 * size, y, (124, 88, 62))
    for level in range(3):
        low, half = y - (0.2 + 0.42 * level) * size, (0.55 - 0.12 * level) * size
        top = low - 0.62 * size
        c.polygon([(x - half, low), (x, top), (x + half, low)], leaves)
        if snow:
            c.polygon(
                [(x - 0.4 * half, top + 0.25 * size), (x, top), (x + 0.4 * half, top + 0.25 * size)],
                (250, 252, 255),
            )


def bush(c: Canvas, x: float, y: float, size: float, leaves: Colour) -> None:
    """A bush that stands at (x, y)."""
    for dx, radius in ((-0.5, 0.45), (0.5, 0.45), (0.0, 0.6)):
        c.circle(x + dx * size, y - 0.25 * size, radius * size, leaves)


def palm(c: Canvas, x: float, y: float, size: float, lean: float) -> None:
    """A palm that stands at (x, y); `lean` is how far its top is to the right, in sizes."""
    top = (x + lean * size, y - 1.5 * size)
    c.line(x, y, x + 0.25 * lean * size, y - 0.75 * size, 0.17 * size, (172, 124, 76))
    c.line(x + 0.25 * lean * size, y - 0.75 * size, *top, 0.13 * size, (172, 124, 76))
    for angle in (-2.9, -2.2, -1.2, -0.35, 0.3, 2.8):
        dx, dy = 0.75 * size * np.cos(angle), 0.5 * size * np.sin(angle)
        c.polygon(
            [
                top,
                (top[0] + 0.5 * dx, top[1] + 0.5 * dy - 0.14 * size),
                (top[0] + dx, top[1] + dy + 0.16 * size),
                (top[0] + 0.5 * dx, top[1] + 0.5 * dy + 0.06 * size),
            ],
            (70, 160, 86),
        )


def cactus(c: Canvas, x: float, y: float, size: float) -> None:
    """A cactus that stands at (x, y)."""
    green = (84, 150, 88)
    c.line(x, y, x, y - 1.3 * size, 0.26 * size, green)
    for side, low in ((-1, 0.5), (1, 0.7)):
        c.line(x, y - low * size, x + side * 0.42 * size, y - low * size, 0.18 * size, green)
        c.line(
            x + side * 0.42 * size,
            y - low * size,
            x + side * 0.42 * size,
            y - (low + 0.45) * size,
            0.18 * size,
            green,
        )


def house(
    c: Canvas, left: float, bottom: float, width: float, height: float, wall: Colour, roof: Colour, flat: bool
) -> None:
    """A house with windows: `flat`, or with a gable above `height`."""
    top, right = bottom - height, left + width
    c.rectangle(left, top, right, bottom, wall)
    if flat:
        c.rectangle(left - 0.01, top - 0.022, right + 0.01, top + 0.012, shade(wall, 0.72))
    else:
        c.polygon([(left - 0.03, top), (left + width / 2, top - 0.45 * width), (right + 0.03, top)], roof)
    columns = max(1, round(width / 0.13))
    rows = max(1, round((height - 0.06) / 0.14))
    for column in range(columns):
        for row in range(rows):
            x, y = left + (column + 0.5) * width / columns, top + 0.045 + row * 0.14
            if y + 0.075 < bottom:
                c.rectangle(x - 0.036, y, x + 0.036, y + 0.085, (250, 244, 230))
                c.rectangle(x - 0.026, y + 0.01, x + 0.026, y + 0.075, GLASS)


def houses(c: Canvas, rng: np.random.Generator, low: float, high: float, flat: float) -> None:
    """A row of houses along all of a place, `low` to `high` high; a fraction `flat` has no gable."""
    left, end = rng.uniform(0, PERIOD), 0.0
    while end < PERIOD - 0.14:
        width = float(rng.choice([0.26, 0.28, 0.39, 0.42]))
        if PERIOD - end - width < 0.2:
            width = PERIOD - end
        wall, roof = (
            WALLS[rng.integers(len(WALLS))],
            ROOFS[rng.integers(len(ROOFS))],
        )
        house(
            c, left + end, 0.68, width - 0.012, rng.uniform(low, high), wall, roof, bool(rng.random() < flat)
        )
        end += width


def cloud(c: Canvas, x: float, y: float, size: float, colour: Colour = (252, 252, 255)) -> None:
    """A cloud around (x, y)."""
    for dx, dy, radius in ((-0.62, 0.02, 0.3), (-0.18, -0.14, 0.42), (0.3, -0.06, 0.36), (0.68, 0.04, 0.26)):
        c.circle(x + dx * size, y + dy * size, radius * size, colour)
    c.line(x - 0.68 * size, y + 0.16 * size, x + 0.7 * size, y + 0.16 * size, 0.3 * size, colour)


def car(c: Canvas, x: float, y: float, size: float, colour: Colour, direction: float) -> None:
    """A car whose wheels are at y; at direction 1 it drives to the right."""
    d = direction * size
    c.polygon(
        [
            (x - 0.5 * d, y - 0.42 * size),
            (x - 0.3 * d, y - 0.78 * size),
            (x + 0.22 * d, y - 0.78 * size),
            (x + 0.48 * d, y - 0.42 * size),
        ],
        colour,
    )
    c.polygon(
        [
            (x - 0.36 * d, y - 0.46 * size),
            (x - 0.23 * d, y - 0.7 * size),
            (x + 0.16 * d, y - 0.7 * size),
            (x + 0.33 * d, y - 0.46 * size),
        ],
        (206, 230, 246),
    )
    c.line(x - 0.78 * d, y - 0.3 * size, x + 0.78 * d, y - 0.3 * size, 0.36 * size, colour)
    c.circle(x + 0.9 * d, y - 0.32 * size, 0.07 * size, (255, 244, 180))
    for wheel in (-0.52, 0.52):
        c.circle(x + wheel * d, y - 0.12 * size, 0.2 * size, (44, 46, 54))
        c.circle(x + wheel * d, y - 0.12 * size, 0.09 * size, (190, 194, 200))


def bird(c: Canvas, x: float, y: float, size: float, colour: Colour = (92, 98, 116)) -> None:
    """A bird with the middle of its wings at (x, y)."""
    for side in (-1, 1):
        c.line(x, y, x + side * 0.5 * size, y - 0.35 * size, 0.16 * size, colour)
        c.line(x + side * 0.5 * size, y - 0.35 * size, x + side * size, y - 0.15 * size, 0.13 * size, colour)


def sailboat(c: Canvas, x: float, y: float, size: float, sail: Colour) -> None:
    """A boat with its waterline at y, and its mast at x."""
    c.polygon(
        [
            (x - 0.7 * size, y - 0.2 * size),
            (x + 0.7 * size, y - 0.2 * size),
            (x + 0.45 * size, y + 0.1 * size),
            (x - 0.45 * size, y + 0.1 * size),
        ],
        (146, 84, 58),
    )
    c.polygon([(x, y - 1.5 * size), (x, y - 0.28 * size), (x + 0.6 * size, y - 0.28 * size)], sail)
    c.polygon(
        [
            (x - 0.07 * size, y - 1.3 * size),
            (x - 0.07 * size, y - 0.28 * size),
            (x - 0.5 * size, y - 0.28 * size),
        ],
        (252, 252, 250),
    )


def flower(c: Canvas, x: float, y: float, size: float, colour: Colour) -> None:
    """A blossom around (x, y); `size` is its radius."""
    c.circle(x, y, size, colour)
    c.circle(x, y, 0.42 * size, (252, 220, 90))
