"""Heads: faces, hair, hats, and the masks of the named characters, turned as the keypoints say."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fyp_jax.synthetic.looks import BLACK, WHITE, Look
from fyp_jax.synthetic.parts import DETAIL, HAIR, HAT, HEAD
from fyp_jax.synthetic.shapes import Colour, Group, Shape, disc, ellipse, limb, polygon, shade


class Head(NamedTuple):
    """Position and direction of a head, in pixels."""

    centre: np.ndarray
    up: np.ndarray
    right: np.ndarray
    """Unit vectors; `right` is the image's right of an upright head."""
    radius: float
    yaw: float
    """0: looks at the viewer, positive: to the image's right, pi: away."""

    def at(self, x: float, y: float) -> np.ndarray:
        """A point of the image plane, in radii from the centre."""
        return self.centre + self.radius * (x * self.right + y * self.up)

    def on(self, azimuth: float, y: float) -> np.ndarray:
        """A point of the head's surface, by the angle from the face's middle and the height in radii."""
        ring = np.sqrt(max(0.0, 1 - y * y))
        return self.at(ring * np.sin(azimuth + self.yaw), y)

    def shows(self, azimuth: float) -> bool:
        """Whether a point of the surface is on the viewer's side."""
        return bool(np.cos(azimuth + self.yaw) > 0.12)

    def oval(self, x: float, y: float, half_w: float, half_h: float, colour: Colour, part: int) -> Shape:
        """An oval that does not turn with the head; lengths are in radii."""
        right, up = self.radius * half_w * self.right, self.radius * half_h * self.up
        return ellipse(self.at(x, y), right, up, colour, part)

    def dome(self, low: float, radius: float, colour: Colour, part: int) -> Shape:
        """The part of a disc above the height `low`."""
        start = np.arcsin(np.clip(low / radius, -0.99, 0.99))
        angles = np.linspace(start, np.pi - start, 20)
        return polygon((self.at(radius * np.cos(a), radius * np.sin(a)) for a in angles), colour, part)

    def patch(self, azimuth: float, y: float, half_w: float, half_h: float, colour: Colour) -> list[Shape]:
        """An oval on the surface; nothing where it is on the far side."""
        if not self.shows(azimuth):
            return []
        narrow = max(0.35, float(np.cos(azimuth + self.yaw)))
        right, up = self.radius * half_w * narrow * self.right, self.radius * half_h * self.up
        return [ellipse(self.on(azimuth, y), right, up, colour, DETAIL)]

    def plate(self, points: list[tuple[float, float]], colour: Colour, rounding: float = 0.0) -> list[Shape]:
        """A polygon on the surface, from points (azimuth, y), mirrored to the other side of the face."""
        outline = [*points, *((-azimuth, y) for azimuth, y in reversed(points))]
        if not self.shows(0.0):
            return []
        limit = 1.45  # beyond it a point would be on the far side
        bounded = ((float(np.clip(a + self.yaw, -limit, limit)) - self.yaw, y) for a, y in outline)
        return [polygon((self.on(*point) for point in bounded), colour, DETAIL, rounding * self.radius)]


def _eyes(head: Head, size: float = 0.15, colour: Colour = BLACK) -> list[Shape]:
    shapes = []
    for azimuth in (-0.42, 0.42):
        shapes += head.patch(azimuth, 0.02, size, 1.3 * size, colour)
        shapes += head.patch(azimuth + 0.06, 0.1, 0.3 * size, 0.35 * size, WHITE)
    return shapes


def _mouth(head: Head, colour: Colour, smile: float = 0.1, y: float = -0.46) -> list[Shape]:
    if not head.shows(0.0):
        return []
    a, b, c = (head.on(azimuth, y + lift) for azimuth, lift in ((-0.3, smile), (0.0, 0.0), (0.3, smile)))
    radius = 0.065 * head.radius
    return [limb(a, b, radius, radius, colour, DETAIL), limb(b, c, radius, radius, colour, DETAIL)]


def _face(head: Head, look: Look) -> list[Group]:
    skin = look.head
    ears = [
        disc(head.on(side * 1.57, -0.02), 0.2 * head.radius, shade(skin, 0.92), HEAD)
        for side in (-1, 1)
        if np.cos(side * 1.57 + head.yaw) > -0.6
    ]
    shapes = [*_eyes(head), *_mouth(head, shade((170, 50, 60), 0.6 + 0.4 * (sum(skin) > 450)))]
    for azimuth in (-0.72, 0.72):
        blush = tuple(round(0.75 * a + 0.25 * b) for a, b in zip(skin, (240, 80, 80), strict=True))
        shapes += head.patch(azimuth, -0.3, 0.17, 0.12, blush)  # pyright: ignore[reportArgumentType]
    outline = 0.085 * head.radius
    return [
        Group(tuple(ears), outline),
        Group((disc(head.centre, head.radius, skin, HEAD),), outline),
        Group(tuple(shapes)),
    ]


def _iron(head: Head, look: Look) -> list[Group]:
    plate = head.plate([(0.34, 0.72), (0.62, 0.34), (0.7, -0.3), (0.36, -0.82)], (246, 194, 66), 0.06)
    eyes = [shape for side in (-1, 1) for shape in head.patch(side * 0.36, 0.06, 0.2, 0.085, (225, 255, 255))]
    mouth = head.plate([(0.2, -0.5), (0.2, -0.56)], (140, 96, 20))
    return [_ball(head, look), Group((*plate, *eyes, *mouth))]


def _angry(head: Head, look: Look) -> list[Group]:
    brows = []
    for side in (-1, 1):
        if head.shows(side * 0.4):
            a, b = head.on(side * 0.7, 0.34), head.on(side * 0.12, 0.16)
            brows.append(limb(a, b, 0.09 * head.radius, 0.09 * head.radius, BLACK, DETAIL))
    return [_ball(head, look), Group((*_eyes(head), *brows, *_mouth(head, (40, 92, 28), -0.1)))]


def _helmet(head: Head, look: Look) -> list[Group]:
    visor = head.plate([(0.55, 0.5), (0.82, 0.2), (0.82, -0.2), (0.55, -0.46)], (34, 56, 110), 0.12)
    shine = head.patch(-0.42, 0.24, 0.2, 0.1, (150, 200, 250))
    ears = [disc(head.on(side * 1.57, 0.0), 0.2 * head.radius, (246, 128, 36), HEAD) for side in (-1, 1)]
    return [Group(tuple(ears), 0.07 * head.radius), _ball(head, look), Group((*visor, *shine))]


def _bat(head: Head, look: Look) -> list[Group]:
    ears = [
        polygon(
            [head.at(side * 0.18, 0.8), head.at(side * 0.72, 1.7), head.at(side * 0.92, 0.3)], look.head, HEAD
        )
        for side in (-1, 1)
    ]
    ball = disc(head.centre, head.radius, look.head, HEAD)
    chin = head.plate([(0.3, -0.16), (0.78, -0.2), (0.7, -0.6), (0.3, -0.86)], (240, 190, 150), 0.04)
    eyes = [shape for side in (-1, 1) for shape in head.patch(side * 0.42, 0.1, 0.2, 0.12, WHITE)]
    return [
        Group((*ears, ball), 0.085 * head.radius),
        Group((*chin, *eyes, *_mouth(head, (130, 50, 50), -0.03, -0.54))),
    ]


def _panda(head: Head, look: Look) -> list[Group]:
    ears = [disc(head.at(side * 0.76, 0.76), 0.4 * head.radius, BLACK, HEAD) for side in (-1, 1)]
    shapes = []
    for side in (-1, 1):
        shapes += head.patch(side * 0.46, 0.04, 0.28, 0.32, BLACK)
        shapes += head.patch(side * 0.42, 0.08, 0.09, 0.11, WHITE)
    shapes += head.patch(0.0, -0.28, 0.17, 0.12, BLACK) + _mouth(head, BLACK, 0.08, -0.56)
    return [Group(tuple(ears), 0.07 * head.radius), _ball(head, look), Group(tuple(shapes))]


def _robot(head: Head, look: Look) -> list[Group]:
    antenna = [
        limb(
            head.at(0.0, 0.9),
            head.at(0.0, 1.4),
            0.08 * head.radius,
            0.08 * head.radius,
            (160, 170, 182),
            HEAD,
        ),
        disc(head.at(0.0, 1.45), 0.2 * head.radius, (240, 78, 156), HEAD),
    ]
    corners = [head.at(x, y) for x, y in ((-0.86, -0.76), (0.86, -0.76), (0.86, 0.76), (-0.86, 0.76))]
    box = polygon(corners, look.head, HEAD, 0.12 * head.radius)
    visor = head.plate([(0.3, 0.42), (0.9, 0.4), (0.9, -0.1), (0.3, -0.12)], (44, 52, 78), 0.05)
    eyes = [shape for side in (-1, 1) for shape in head.patch(side * 0.42, 0.15, 0.17, 0.17, (250, 236, 120))]
    mouth = head.plate([(0.4, -0.4), (0.4, -0.54)], (44, 52, 78))
    return [Group((*antenna, box), 0.085 * head.radius), Group((*visor, *eyes, *mouth))]


def _trooper(head: Head, look: Look) -> list[Group]:
    brow = head.plate([(0.4, 0.46), (0.95, 0.42), (0.95, 0.32), (0.4, 0.34)], BLACK)
    shapes = [shape for side in (-1, 1) for shape in head.patch(side * 0.45, 0.08, 0.28, 0.2, BLACK)]
    shapes += head.patch(0.0, -0.2, 0.1, 0.16, (150, 160, 176))
    shapes += head.plate([(0.2, -0.44), (0.62, -0.52), (0.55, -0.68), (0.2, -0.62)], BLACK)
    return [_ball(head, look), Group((*brow, *shapes))]


MASKS: dict[str, Callable[[Head, Look], list[Group]]] = {
    "iron": _iron, "angry": _angry, "helmet": _helmet, "bat": _bat, "panda": _panda,
    "robot": _robot, "trooper": _trooper,
}  # fmt: skip


def _ball(head: Head, look: Look) -> Group:
    return Group((disc(head.centre, head.radius, look.head, HEAD),), 0.085 * head.radius)


def hair_behind(head: Head, look: Look) -> list[Group]:
    """The hair that is behind the head, and behind the trunk unless the figure looks away."""
    if look.hair is None or look.hair[0] == "bald":
        return []
    style, colour = look.hair
    back = -0.22 * np.sin(head.yaw)
    shapes = [head.oval(back, 0.12, 1.06, 1.04, colour, HAIR)]
    if style == "bob":
        shapes.append(head.oval(back, -0.2, 1.22, 0.95, colour, HAIR))
    elif style == "long":
        corners = [head.at(back + x, y) for x, y in ((-0.8, 0.2), (0.8, 0.2), (1.0, -1.7), (-1.0, -1.7))]
        shapes.append(polygon(corners, colour, HAIR, 0.25 * head.radius))
    elif style == "bun":
        shapes.append(disc(head.at(1.6 * back, 1.22), 0.46 * head.radius, colour, HAIR))
    elif style == "ponytail":
        side = -np.sign(np.sin(head.yaw)) or 1.0
        tail = [head.at(side * x, y) for x, y in ((0.6, 0.7), (1.45, 0.45), (1.5, -0.5))]
        shapes += [
            limb(tail[0], tail[1], 0.3 * head.radius, 0.36 * head.radius, colour, HAIR),
            limb(tail[1], tail[2], 0.36 * head.radius, 0.14 * head.radius, colour, HAIR),
        ]
    elif style == "afro":
        shapes = [disc(head.at(0.6 * back, 0.28), 1.42 * head.radius, colour, HAIR)]
    elif style == "spiky":
        for angle in np.linspace(0.25, np.pi - 0.25, 6):
            tip = head.at(back + 1.45 * np.cos(angle), 1.45 * np.sin(angle))
            sides = [head.at(back + 0.95 * np.cos(angle + d), 0.95 * np.sin(angle + d)) for d in (-0.3, 0.3)]
            shapes.append(polygon([sides[0], tip, sides[1]], colour, HAIR))
    return [Group(tuple(shapes), 0.085 * head.radius)]


def _hair_over(head: Head, look: Look) -> list[Group]:
    """The fringe, or all of the head where the figure looks away."""
    if look.hair is None or look.hair[0] == "bald":
        return []
    style, colour = look.hair
    if np.cos(head.yaw) < -0.3:
        return [Group((head.oval(0.0, 0.06, 1.0, 0.98, colour, HAIR),))]
    lean = 0.5 * np.sin(head.yaw)
    low = {"bob": 0.42, "long": 0.5, "afro": 0.55, "spiky": 0.5}.get(style, 0.5)
    angles = np.linspace(
        np.arcsin(low) - 0.5 * max(0.0, lean), np.pi - np.arcsin(low) - 0.5 * max(0.0, -lean), 18
    )
    top = [head.at(1.04 * np.cos(a), 1.04 * np.sin(a)) for a in angles]
    top[0] = head.at(1.02, low - 0.55 * max(0.0, -lean) * 2)
    top[-1] = head.at(-1.02, low - 0.55 * max(0.0, lean) * 2)
    parting = head.at(lean + 0.25, low + 0.22)
    return [Group((polygon([*top, parting], colour, HAIR),))]


def _hat(head: Head, look: Look) -> list[Group]:
    if look.hat is None:
        return []
    kind, colour = look.hat
    outline, dark = 0.085 * head.radius, shade(colour, 0.78)
    if kind == "headband":
        return [
            Group(
                (
                    limb(
                        head.at(-0.9, 0.5),
                        head.at(0.9, 0.5),
                        0.13 * head.radius,
                        0.13 * head.radius,
                        colour,
                        HAT,
                    ),
                )
            )
        ]
    dome = head.dome(0.45, 1.14, colour, HAT)
    if kind == "beanie":
        band = limb(
            head.at(-0.98, 0.5), head.at(0.98, 0.5), 0.16 * head.radius, 0.16 * head.radius, dark, HAT
        )
        return [Group((dome, disc(head.at(0.0, 1.2), 0.22 * head.radius, dark, HAT), band), outline)]
    if kind == "cap":
        ahead = float(np.sin(head.yaw))
        brim = limb(
            head.at(-0.45 + 0.3 * ahead, 0.46),
            head.at(0.45 + 1.1 * ahead, 0.46),
            0.14 * head.radius,
            0.12 * head.radius,
            dark,
            HAT,
        )
        return [Group((dome, brim), outline)]
    brim = head.oval(0.0, 0.5, 1.7, 0.24, colour, HAT)
    crown = polygon(
        [head.at(x, y) for x, y in ((-0.8, 0.5), (0.8, 0.5), (0.66, 1.2), (-0.66, 1.2))],
        colour,
        HAT,
        0.1 * head.radius,
    )
    band = limb(head.at(-0.76, 0.72), head.at(0.76, 0.72), 0.1 * head.radius, 0.1 * head.radius, dark, HAT)
    return [Group((brim, crown), outline), Group((band,))]


def draw_head(head: Head, look: Look) -> list[Group]:
    """The head from back to front, without the hair behind it."""
    groups = MASKS[look.mask](head, look) if look.mask else _face(head, look)
    return [*groups, *_hair_over(head, look), *_hat(head, look)]
