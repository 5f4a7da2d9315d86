"""What moves by itself in places: clouds, birds, waves, cars, snow, leaves; each at a constant velocity."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fyp_jax.synthetic import things
from fyp_jax.synthetic.canvas import PERIOD, Canvas
from fyp_jax.synthetic.shapes import Colour


class Mover(NamedTuple):
    """Things that move by themselves, all at one velocity."""

    paint: Callable[[Canvas, float], None]
    """Paints the things where they are at the start; the second argument is the time in frames."""
    velocity: tuple[float, float] = (0.0, 0.0)
    """Relative to the place, in sides a frame."""
    where: str = "behind"
    """"sky": behind the ground; "behind" or "front": before the ground, behind or in front of the figures."""
    drop: float | None = None
    """As in `Canvas.drop`."""


def scatter(rng: np.random.Generator, count: int, jitter: float = 0.3) -> np.ndarray:
    """Positions along the place, at roughly equal distances, in random order."""
    step = PERIOD / count
    return rng.permutation(
        (np.arange(count) + rng.uniform(-jitter, jitter, count)) * step + rng.uniform(0, PERIOD)
    )


def sample_speed(rng: np.random.Generator, low: float, high: float) -> float:
    """A velocity in quarters of a 128th of the side a frame, to the left or to the right."""
    return float(rng.choice([-1, 1]) * round(4 * rng.uniform(low, high)) / 4 / 128)


def clouds(rng: np.random.Generator, colour: Colour = (252, 252, 255), chance: float = 0.75) -> list[Mover]:
    """Clouds in the sky, by `chance`, which drift by up to a pixel a frame at 128 pixels."""
    if rng.random() > chance:
        return []
    spots, sizes, heights = scatter(rng, 5), rng.uniform(0.07, 0.12, 5), rng.uniform(0.1, 0.26, 5)

    def paint(c: Canvas, _: float) -> None:
        for x, y, size in zip(spots, heights, sizes, strict=True):
            things.cloud(c, x, y, size, colour)

    return [Mover(paint, (sample_speed(rng, 0.25, 1.0), 0.0), "sky")]


def birds(rng: np.random.Generator, chance: float = 0.3) -> list[Mover]:
    """Birds in the sky, by `chance`."""
    if rng.random() > chance:
        return []
    spots, heights = scatter(rng, 4), rng.uniform(0.1, 0.3, 4)

    def paint(c: Canvas, _: float) -> None:
        for x, y in zip(spots, heights, strict=True):
            things.bird(c, x, y, 0.045)

    return [Mover(paint, (sample_speed(rng, 0.75, 1.5), 0.0), "sky")]


def sailboat(rng: np.random.Generator, y: float, size: float, chance: float) -> list[Mover]:
    """A boat on the water at height y, by `chance`."""
    if rng.random() >= chance:
        return []
    x, sail = rng.uniform(0, PERIOD), things.CARS[rng.integers(3)]
    return [Mover(lambda c, _: things.sailboat(c, x, y, size, sail), (sample_speed(rng, 0.5, 1.0), 0.0))]


def waves(rng: np.random.Generator, rows: np.ndarray, colour: Colour, size: float) -> list[Mover]:
    """Crests in rows, of which every second one moves the other way."""
    speed, spots = sample_speed(rng, 0.5, 1.25), rng.uniform(0, PERIOD, len(rows))

    def painter(first: int) -> Callable[[Canvas, float], None]:
        def paint(c: Canvas, _: float) -> None:
            for row in range(first, len(rows), 2):
                for x in np.arange(5) * PERIOD / 5:
                    c.ellipse(spots[row] + x, rows[row], size, 0.16 * size, colour)

        return paint

    return [Mover(painter(0), (speed, 0.0)), Mover(painter(1), (-speed, 0.0))]


def falling(
    rng: np.random.Generator,
    count: int,
    radius: float,
    velocity: tuple[float, float],
    where: str,
    colours: tuple[Colour, ...],
) -> Mover:
    """Discs of a `radius`, which fall and begin at the top again. `velocity` as in Mover."""
    spots, heights = rng.uniform(0, PERIOD, count), rng.uniform(0, 1.2, count)

    def paint(c: Canvas, _: float) -> None:
        for i, (x, y) in enumerate(zip(spots, heights, strict=True)):
            c.circle(x, y, radius, colours[i % len(colours)])

    return Mover(paint, velocity, where, drop=1.2)


def falling_leaves(rng: np.random.Generator) -> list[Mover]:
    """Leaves that fall behind the figures."""
    return [
        falling(
            rng,
            14,
            0.014,
            (sample_speed(rng, 0.25, 1.0), 1.0 / 128),
            "behind",
            ((238, 178, 72), (220, 110, 60)),
        )
    ]


def snowfall(rng: np.random.Generator) -> list[Mover]:
    """Snow behind the figures, and larger and faster flakes in front of them."""
    wind, white = sample_speed(rng, 0.0, 0.75), ((252, 253, 255),)
    return [
        falling(rng, 44, 0.009, (wind, 1.0 / 128), "behind", white),
        falling(rng, 20, 0.015, (1.5 * wind, 2.0 / 128), "front", white),
    ]


def traffic(rng: np.random.Generator, lanes: tuple[tuple[float, float], ...]) -> list[Mover]:
    """Cars in lanes, each a height and a size. Those of the first lane drive to the right, others left."""
    movers = []
    for lane, (y, size) in enumerate(lanes):
        direction = 1.0 if lane == 0 else -1.0
        spots = scatter(rng, 2, 0.15)
        colours = [things.CARS[i] for i in rng.integers(len(things.CARS), size=2)]

        def paint(
            c: Canvas, _: float, y=y, size=size, direction=direction, spots=spots, colours=colours
        ) -> None:
            for x, colour in zip(spots, colours, strict=True):
                things.car(c, x, y, size, colour, direction)

        movers.append(Mover(paint, (direction * abs(sample_speed(rng, 1.0, 3.0)), 0.0)))
    return movers
