"""The places of the synthetic world. A seed chooses what stands and moves in them.

A place has a sky, and a ground in front of it. Both are painted once for a clip, and the camera sees a window
of them. What moves by itself is painted on each frame, at a constant velocity.
"""

from collections.abc import Callable

import numpy as np

from fyp_jax.synthetic import things
from fyp_jax.synthetic.canvas import PERIOD, Canvas
from fyp_jax.synthetic.movers import (
    Mover,
    birds,
    clouds,
    falling_leaves,
    sailboat,
    scatter,
    snowfall,
    traffic,
    waves,
)
from fyp_jax.synthetic.shapes import shade

Place = Callable[[Canvas, Canvas, np.random.Generator], list[Mover]]
"""Paints the sky and the ground, and returns what moves."""


def _beach(sky: Canvas, c: Canvas, rng: np.random.Generator) -> list[Mover]:
    sky.gradient((112, 194, 246), (214, 238, 252), 0.42)
    c.band(0.40, 0.60, (64, 182, 204))
    c.band(0.575, 0.60, (226, 248, 246))
    c.band(0.595, 1.02, (246, 222, 164))
    c.hills([(0.012, 3, rng.random())], 0.86, 1.02, (238, 208, 142))
    for x in scatter(rng, 3, 0.2):
        kind = rng.integers(3)
        if kind == 0:
            c.rectangle(x - 0.012, 0.4, x + 0.012, 0.8, (168, 124, 80))
            stripes = [things.CARS[rng.integers(3)], (252, 250, 244)]
            for i in range(4):
                a, b = x - 0.2 + 0.1 * i, x - 0.1 + 0.1 * i
                c.polygon([(a, 0.5), (x, 0.33), (b, 0.5)], stripes[i % 2])
        elif kind == 1:
            things.palm(c, x, 0.72, rng.uniform(0.22, 0.28), rng.uniform(-0.4, 0.4))
        else:
            c.circle(x, 0.86, 0.05, things.CARS[rng.integers(len(things.CARS))])
            c.ellipse(x, 0.86, 0.018, 0.05, (252, 250, 244))
    movers = clouds(rng) + waves(rng, np.array([0.45, 0.51]), (150, 220, 230), 0.07)
    return movers + sailboat(rng, 0.44, 0.1, chance=0.5)


def _sea(sky: Canvas, c: Canvas, rng: np.random.Generator) -> list[Mover]:
    sky.gradient((150, 206, 240), (226, 240, 248), 0.32)
    if rng.random() < 0.5:
        c.hills([(0.03, 2, rng.random()), (0.02, 5, rng.random())], 0.31, 0.34, (132, 168, 178))
    c.band(0.31, 1.02, (44, 112, 190))
    c.band(0.31, 0.40, (72, 138, 206))
    c.band(0.72, 1.02, (32, 92, 168))
    movers = clouds(rng, chance=0.6) + birds(rng)
    movers += waves(rng, np.arange(0.39, 1.0, 0.115), (136, 192, 236), 0.1)
    return movers + sailboat(rng, 0.36, 0.13, chance=0.6)


def _forest(sky: Canvas, c: Canvas, rng: np.random.Generator) -> list[Mover]:
    sky.gradient((206, 230, 190), (170, 208, 156), 0.8)
    for depth, (count, colour, leaves) in enumerate((
        (11, (138, 164, 120), (128, 176, 122)),
        (8, (122, 96, 72), (74, 138, 82)),
    )):  # fmt: skip
        ground = 0.68 + 0.08 * depth
        for x in scatter(rng, count, 0.25):
            half = (0.016, 0.034)[depth] * rng.uniform(0.8, 1.2)
            c.polygon(
                [
                    (x - half, 0.05),
                    (x + half, 0.05),
                    (x + 1.3 * half, ground + 0.02),
                    (x - 1.3 * half, ground + 0.02),
                ],
                colour,
            )
            c.circle(x, rng.uniform(0.0, 0.08), (0.13, 0.17)[depth], leaves)
        c.band(ground, 1.02, ((150, 186, 116), (104, 156, 84))[depth])
    for x in scatter(rng, 7):
        y = rng.uniform(0.8, 0.97)
        if rng.random() < 0.5:
            things.bush(c, x, y, 0.09, (76, 132, 66))
        else:
            c.rectangle(x - 0.012, y - 0.04, x + 0.012, y, (250, 240, 220))
            c.ellipse(x, y - 0.045, 0.035, 0.022, (214, 70, 60))
    return falling_leaves(rng) if rng.random() < 0.4 else []


def _snow(sky: Canvas, c: Canvas, rng: np.random.Generator) -> list[Mover]:
    sky.gradient((140, 178, 220), (206, 222, 240), 0.6)
    c.hills([(0.05, 2, rng.random()), (0.03, 3, rng.random())], 0.46, 0.64, (182, 204, 230))
    c.band(0.6, 1.02, (230, 238, 250))
    c.hills([(0.015, 2, rng.random())], 0.6, 0.64, (230, 238, 250))
    for x in scatter(rng, 7):
        size = rng.uniform(0.16, 0.28)
        things.pine(c, x, 0.6 + 0.2 * size + rng.uniform(0, 0.06), size, (84, 138, 134), True)
    if rng.random() < 0.35:
        x, y = rng.uniform(0, PERIOD), 0.74
        for dy, radius in ((0.0, 0.075), (-0.105, 0.055), (-0.185, 0.04)):
            c.circle(x, y + dy, radius + 0.006, (160, 180, 210))
            c.circle(x, y + dy, radius, (252, 253, 255))
        c.rectangle(x - 0.03, y - 0.26, x + 0.03, y - 0.215, (60, 60, 76))
        c.circle(x, y - 0.185, 0.01, (244, 130, 50))
    c.hills([(0.02, 3, rng.random())], 0.88, 1.02, (214, 226, 244))
    return snowfall(rng) if rng.random() < 0.6 else clouds(rng)


def _desert(sky: Canvas, c: Canvas, rng: np.random.Generator) -> list[Mover]:
    sky.gradient((252, 212, 142), (255, 238, 198), 0.55)
    c.hills([(0.06, 1, rng.random()), (0.03, 3, rng.random())], 0.47, 0.7, (242, 190, 124))
    c.hills([(0.04, 2, rng.random())], 0.58, 0.8, (232, 166, 98))
    c.hills([(0.025, 2, rng.random()), (0.012, 5, rng.random())], 0.7, 1.02, (222, 150, 82))
    c.hills([(0.02, 3, rng.random())], 0.9, 1.02, (208, 134, 68))
    for x in scatter(rng, 4):
        if rng.random() < 0.7:
            things.cactus(c, x, rng.uniform(0.68, 0.76), rng.uniform(0.13, 0.19))
        else:
            c.ellipse(x, 0.76, 0.09, 0.045, (184, 122, 80))
            c.ellipse(x - 0.02, 0.748, 0.05, 0.022, (206, 146, 102))
    return clouds(rng, (255, 250, 236), 0.35) + birds(rng, 0.3)


def _moon(sky: Canvas, c: Canvas, rng: np.random.Generator) -> list[Mover]:
    sky.gradient((20, 22, 62), (46, 46, 100), 0.65)
    x, radius = rng.uniform(0, PERIOD), rng.uniform(0.09, 0.13)
    for turn in (x, x + PERIOD / 2):
        sky.circle(turn, 0.17, radius, (70, 146, 232))
        sky.ellipse(turn - 0.3 * radius, 0.17 - 0.25 * radius, 0.45 * radius, 0.32 * radius, (96, 196, 122))
        sky.ellipse(turn + 0.4 * radius, 0.17 + 0.3 * radius, 0.32 * radius, 0.24 * radius, (96, 196, 122))
    c.hills([(0.02, 3, rng.random()), (0.015, 7, rng.random())], 0.6, 1.02, (150, 152, 170))
    c.hills([(0.015, 2, rng.random())], 0.7, 1.02, (178, 180, 194))
    for x in scatter(rng, 8):
        y, size = rng.uniform(0.74, 0.97), rng.uniform(0.05, 0.1)
        c.ellipse(x, y, size, 0.38 * size, (146, 148, 166))
        c.ellipse(x, y + 0.07 * size, 0.8 * size, 0.26 * size, (126, 128, 148))
    count = 30
    xs, ys, phases = scatter(rng, count), rng.uniform(0.03, 0.52, count), rng.uniform(size=count)
    period = rng.uniform(8, 20)

    def stars(s: Canvas, t: float) -> None:
        for x, y, phase in zip(xs, ys, phases, strict=True):
            bright = 0.55 + 0.45 * np.sin(2 * np.pi * (t / period + phase))
            s.circle(x, y, 0.0065 + 0.004 * bright, shade((255, 250, 220), 0.55 + 0.45 * bright))

    return [Mover(stars, (0.0, 0.0), "sky")]


def _street(sky: Canvas, c: Canvas, rng: np.random.Generator) -> list[Mover]:
    sky.gradient((176, 208, 232), (222, 232, 240), 0.6)
    things.houses(c, rng, 0.36, 0.62, 0.8)
    c.band(0.67, 0.76, (198, 196, 194))
    c.band(0.75, 0.77, (150, 150, 152))
    c.band(0.765, 1.02, (112, 116, 126))
    for x in np.arange(6) * PERIOD / 6 + rng.uniform(0, 0.3):
        c.rectangle(x, 0.885, x + 0.16, 0.91, (246, 238, 206))
    if rng.random() < 0.5:
        for x in scatter(rng, 3, 0.1):
            c.line(x, 0.72, x, 0.34, 0.018, (76, 84, 100))
            c.circle(x, 0.32, 0.035, (255, 240, 170))
    else:
        for x in scatter(rng, 3, 0.15):
            things.round_tree(c, x, 0.72, 0.13, things.LEAVES[rng.integers(3)])
    return clouds(rng, chance=0.5) + (traffic(rng, ((0.84, 0.13),)) if rng.random() < 0.6 else [])


def _park(sky: Canvas, c: Canvas, rng: np.random.Generator) -> list[Mover]:
    sky.gradient((126, 194, 248), (214, 236, 250), 0.55)
    c.hills([(0.03, 2, rng.random()), (0.02, 3, rng.random())], 0.5, 0.7, (154, 204, 124))
    c.hills([(0.01, 1, rng.random())], 0.6, 1.02, (142, 208, 102))
    middle = rng.uniform(0, PERIOD)
    c.polygon(
        [(middle - 0.05, 0.6), (middle + 0.05, 0.6), (middle + 0.28, 1.02), (middle - 0.28, 1.02)],
        (236, 218, 180),
    )
    for x in scatter(rng, 5):
        leaves = things.LEAVES[rng.integers(len(things.LEAVES))]
        things.round_tree(c, x, rng.uniform(0.62, 0.68), rng.uniform(0.14, 0.2), leaves)
    x = middle + rng.uniform(0.4, 1.6)
    for y in (0.63, 0.67):
        c.rectangle(x - 0.11, y, x + 0.11, y + 0.022, (170, 116, 74))
    for side in (-0.09, 0.09):
        c.rectangle(x + side - 0.01, 0.63, x + side + 0.01, 0.73, (110, 84, 70))
    for x in scatter(rng, 10):
        things.flower(
            c,
            x,
            rng.uniform(0.74, 0.97),
            0.018,
            ((246, 130, 150), (250, 250, 250), (190, 140, 230))[rng.integers(3)],
        )
    return clouds(rng) + birds(rng)


def _simple(sky: Canvas, c: Canvas, rng: np.random.Generator) -> list[Mover]:
    sky.gradient((218, 204, 230), (196, 182, 214))
    return []


def _outside(sky: Canvas, c: Canvas, rng: np.random.Generator) -> list[Mover]:
    """Meadows under any sky, with mountains, trees, or a house."""
    tops = ((126, 194, 248), (150, 206, 236), (198, 210, 226), (250, 206, 150), (186, 176, 226))
    sky.gradient(tops[rng.integers(len(tops))], (240, 238, 228), 0.6)
    if rng.random() < 0.55:
        colour = ((164, 176, 206), (186, 170, 190), (150, 184, 186))[rng.integers(3)]
        for x in scatter(rng, 5):
            height = rng.uniform(0.16, 0.36)
            c.polygon(
                [(x - 0.34, 0.62), (x, 0.6 - height), (x + 0.34, 0.62)],
                shade(colour, rng.uniform(0.92, 1.15)),
            )
            if height > 0.24:
                c.polygon(
                    [(x - 0.07, 0.6 - 0.79 * height), (x, 0.6 - height), (x + 0.07, 0.6 - 0.79 * height)],
                    (250, 250, 254),
                )
    far, near = (
        ((170, 208, 130), (144, 196, 106)),
        ((214, 200, 128), (196, 184, 104)),
        ((142, 196, 146), (116, 180, 124)),
    )[rng.integers(3)]
    c.hills([(0.03, 1, rng.random()), (0.025, 3, rng.random())], 0.58, 0.8, far)
    for x in scatter(rng, int(rng.integers(2, 6))):
        if rng.random() < 0.5:
            things.round_tree(c, x, 0.66, rng.uniform(0.12, 0.18), things.LEAVES[rng.integers(4)])
        else:
            things.pine(c, x, 0.67, rng.uniform(0.2, 0.3), (92, 150, 112), False)
    if rng.random() < 0.5:
        things.house(
            c,
            rng.uniform(0, PERIOD),
            0.7,
            0.3,
            0.17,
            things.WALLS[rng.integers(7)],
            things.ROOFS[rng.integers(4)],
            False,
        )
    c.hills([(0.015, 2, rng.random())], 0.69, 1.02, near)
    for x in scatter(rng, int(rng.integers(0, 9)) + 1):
        things.flower(c, x, rng.uniform(0.76, 0.97), 0.018, things.CARS[rng.integers(4)])
    return clouds(rng) + birds(rng)


def _town(sky: Canvas, c: Canvas, rng: np.random.Generator) -> list[Mover]:
    """Small houses with gables along a square."""
    sky.gradient(((150, 204, 244), (250, 214, 168), (196, 206, 232))[rng.integers(3)], (242, 240, 236), 0.6)
    c.hills([(0.04, 2, rng.random())], 0.5, 0.7, (170, 200, 150))
    things.houses(c, rng, 0.2, 0.4, 0.15)
    pavement = ((226, 210, 186), (206, 206, 210), (222, 196, 176))[rng.integers(3)]
    c.band(0.675, 1.02, pavement)
    for y in (0.76, 0.88):
        c.band(y, y + 0.012, shade(pavement, 0.9))
    for x in scatter(rng, 4):
        things.bush(c, x, 0.71, 0.1, things.LEAVES[rng.integers(3)])
    return clouds(rng) + birds(rng)


PLACES: dict[str, tuple[str, Place]] = {
    "beach": ("on the beach", _beach),
    "sea": ("on the sea", _sea),
    "forest": ("in the forest", _forest),
    "snow": ("in the snow", _snow),
    "desert": ("in the desert", _desert),
    "moon": ("on the moon", _moon),
    "street": ("on the street", _street),
    "park": ("in the park", _park),
    "simple": ("simple background", _simple),
    "outside": ("outside", _outside),
    "town": ("in a town", _town),
}
"""For each place its words in a caption, and the function that paints it."""
OPEN_PLACES = ("outside", "town")
"""Places whose looks the caption does not say."""
