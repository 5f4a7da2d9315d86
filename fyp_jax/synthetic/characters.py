"""The characters of the synthetic world: their looks, and how a figure is painted from its joints."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image, ImageDraw

from fyp_jax.pose.skeleton import JOINTS

Colour = tuple[int, int, int]
Point = tuple[float, float]


@dataclass(frozen=True)
class Character:
    """Colours of the body parts, proportions, and the look of the head."""

    torso: Colour
    arms: Colour
    forearms: Colour
    thighs: Colour
    shins: Colour
    head: Colour
    hands: Colour
    feet: Colour
    stoutness: float = 1.0
    """Factor on the widths of limbs and trunk."""
    head_size: float = 1.0
    """Factor on the radius of the head."""
    square: bool = False
    """Whether the head is a square."""
    ears: Colour | None = None
    pointed: bool = False
    """Whether the ears are pointed, as a bat's, and not round."""
    face: tuple[str, Colour] | None = None
    """Kind (visor, slit, mask, eyes or patches) and colour."""
    hair: Colour | None = None
    cape: Colour | None = None
    belt: Colour | None = None
    chest: tuple[str, Colour] | None = None
    """Kind (dot, emblem or panel) and colour."""


SKIN, BROWN, BLACK = (236, 188, 150), (92, 56, 30), (22, 22, 28)
WHITE = (250, 248, 240)

CHARACTERS: dict[str, Character] = {
    "iron man": Character(
        torso=(190, 24, 30), arms=(190, 24, 30), forearms=(236, 178, 44), thighs=(236, 178, 44),
        shins=(190, 24, 30), head=(190, 24, 30), hands=(190, 24, 30), feet=(150, 14, 22),
        face=("mask", (240, 190, 60)), chest=("dot", (150, 250, 255)), belt=(236, 178, 44),
    ),
    "hulk": Character(
        torso=(74, 176, 48), arms=(74, 176, 48), forearms=(74, 176, 48), thighs=(104, 40, 140),
        shins=(74, 176, 48), head=(84, 186, 58), hands=(84, 186, 58), feet=(74, 176, 48),
        stoutness=1.3, hair=BLACK, face=("eyes", BLACK), belt=(104, 40, 140),
    ),
    "astronaut": Character(
        torso=(244, 120, 30), arms=(244, 120, 30), forearms=(244, 120, 30), thighs=(244, 120, 30),
        shins=(244, 120, 30), head=WHITE, hands=WHITE, feet=WHITE,
        stoutness=1.12, head_size=1.3, face=("visor", (30, 50, 90)), belt=WHITE, chest=("panel", WHITE),
    ),
    "batman": Character(
        torso=(84, 88, 104), arms=(84, 88, 104), forearms=(34, 34, 50), thighs=(84, 88, 104),
        shins=(34, 34, 50), head=(34, 34, 50), hands=(34, 34, 50), feet=(34, 34, 50),
        ears=(34, 34, 50), pointed=True, face=("mask", SKIN), cape=(34, 34, 50), belt=(245, 205, 40),
        chest=("emblem", (245, 205, 40)),
    ),
    "superman": Character(
        torso=(28, 74, 196), arms=(28, 74, 196), forearms=(28, 74, 196), thighs=(28, 74, 196),
        shins=(206, 20, 34), head=SKIN, hands=SKIN, feet=(206, 20, 34),
        hair=BLACK, face=("eyes", BLACK), cape=(206, 20, 34), belt=(245, 205, 40),
        chest=("emblem", (245, 205, 40)),
    ),
    "panda": Character(
        torso=WHITE, arms=BLACK, forearms=BLACK, thighs=BLACK, shins=BLACK, head=WHITE, hands=BLACK,
        feet=BLACK, stoutness=1.2, head_size=1.35, ears=BLACK, face=("patches", BLACK),
    ),
    "robot": Character(
        torso=(96, 206, 214), arms=(150, 160, 172), forearms=(96, 206, 214), thighs=(150, 160, 172),
        shins=(96, 206, 214), head=(96, 206, 214), hands=(240, 70, 150), feet=(240, 70, 150),
        square=True, head_size=1.15, face=("visor", (240, 70, 150)), chest=("panel", (240, 70, 150)),
    ),
    "stormtrooper": Character(
        torso=(226, 230, 238), arms=(226, 230, 238), forearms=(226, 230, 238), thighs=(226, 230, 238),
        shins=(226, 230, 238), head=(226, 230, 238), hands=BLACK, feet=(226, 230, 238),
        head_size=1.1, face=("slit", BLACK), belt=BLACK, chest=("panel", BLACK),
    ),
    "man": Character(
        torso=(250, 214, 60), arms=(250, 214, 60), forearms=SKIN, thighs=(88, 66, 120),
        shins=(88, 66, 120), head=SKIN, hands=SKIN, feet=(60, 36, 26),
        hair=BROWN, face=("eyes", BLACK),
    ),
}  # fmt: skip
NAMES_WITHOUT_ARTICLE = ("iron man", "hulk", "batman", "superman")

ARM, LEG, HEAD = 0.36, 0.44, 0.37
"""Widths of arms and legs and radius of the head, in units of the torso's length."""


def _torso_length(points: dict[str, np.ndarray]) -> float:
    """Length of the torso in pixels; at least 0.55 of the longer leg, for bodies that are foreshortened."""
    neck, hips = _midpoint(points, "shoulder"), _midpoint(points, "hip")
    legs = [
        np.linalg.norm(points[f"{side}_hip"] - points[f"{side}_knee"])
        + np.linalg.norm(points[f"{side}_knee"] - points[f"{side}_ankle"])
        for side in ("left", "right")
    ]
    return float(max(np.linalg.norm(neck - hips), 0.55 * max(legs)))


def paint_figure(
    keypoints: Float[np.ndarray, "17 3"], character: Character, image: Image.Image, mask: Image.Image
) -> None:
    """Paint a character over an RGB image, and in white into a mask (mode "L").

    Keypoints are x and y in pixels of the image, and a confidence, which is ignored.
    """
    points = {name: point[:2] for name, point in zip(JOINTS, np.asarray(keypoints, float), strict=True)}
    unit = _torso_length(points)
    draw_image, draw_mask = ImageDraw.Draw(image), ImageDraw.Draw(mask)
    for kind, vertices, width, colour in _shapes(points, character, unit):
        for draw, fill in ((draw_image, colour), (draw_mask, 255)):
            if kind == "limb":
                draw.line(vertices, fill=fill, width=max(1, round(width)))
                for x, y in vertices:
                    draw.circle((x, y), width / 2, fill=fill)
            elif kind == "circle":
                draw.circle(vertices[0], width, fill=fill)
            else:
                draw.polygon(vertices, fill=fill)


def _shapes(
    points: dict[str, np.ndarray], character: Character, unit: float
) -> Iterator[tuple[str, list[Point], float, Colour]]:
    """Yield (kind: limb, circle or polygon; vertices; width or radius; colour), from back to front."""
    c, girth = character, character.stoutness * unit
    neck, hips = _midpoint(points, "shoulder"), _midpoint(points, "hip")
    down = (hips - neck) / max(float(np.linalg.norm(hips - neck)), 1e-6)
    across = np.array([-down[1], down[0]])  # to the person's left, which is the image's right
    across = across if across[0] >= 0 else -across
    if c.cape is not None:
        hem = hips + 0.75 * unit * down
        yield "polygon", _points(
            points["left_shoulder"], points["right_shoulder"],
            hem - 0.62 * unit * across, hem + 0.62 * unit * across,
        ), 0, c.cape  # fmt: skip
    for side in ("right", "left"):
        hip, knee, ankle = (points[f"{side}_{name}"] for name in ("hip", "knee", "ankle"))
        yield "limb", _points(knee, ankle), 0.92 * LEG * girth, c.shins
        yield "limb", _points(hip, knee), LEG * girth, c.thighs
        yield "circle", _points(ankle), 0.27 * girth, c.feet
    half = 0.5 * ARM * girth
    shoulders = [
        points["left_shoulder"] + half * across * 0.4,
        points["right_shoulder"] - half * across * 0.4,
    ]
    sides = max(
        0.3 * girth,
        float(np.linalg.norm(points["left_hip"] - points["right_hip"])) / 2 + 0.18 * girth,
    )
    waist = [hips - sides * across, hips + sides * across]
    trunk = _points(*shoulders, *waist)
    yield "polygon", trunk, 0, c.torso
    yield "limb", [trunk[0], trunk[1]], 0.8 * ARM * girth, c.torso
    yield "limb", _points(neck, hips), max(0.5 * girth, 1), c.torso
    if c.belt is not None:
        yield "limb", _points(hips - 0.8 * sides * across, hips + 0.8 * sides * across), 0.22 * unit, c.belt
    if c.chest is not None:
        kind, colour = c.chest
        chest = neck + (0.28 if kind != "panel" else 0.42) * unit * down
        half_width = {"dot": 0.0, "emblem": 0.16, "panel": 0.14}[kind] * unit
        yield "limb", _points(chest - half_width * across, chest + half_width * across), 0.24 * unit, colour
    yield from _head(points, c, unit, neck)
    for side in ("right", "left"):
        shoulder, elbow, wrist = (points[f"{side}_{name}"] for name in ("shoulder", "elbow", "wrist"))
        yield "limb", _points(shoulder, elbow), ARM * girth, c.arms
        yield "limb", _points(elbow, wrist), 0.92 * ARM * girth, c.forearms
        yield "circle", _points(wrist), 0.22 * girth, c.hands


def _head(
    points: dict[str, np.ndarray], c: Character, unit: float, neck: np.ndarray
) -> Iterator[tuple[str, list[Point], float, Colour]]:
    face = np.mean(
        [points[name] for name in ("nose", "left_eye", "right_eye", "left_ear", "right_ear")], axis=0
    )
    up = (face - neck) / max(float(np.linalg.norm(face - neck)), 1e-6)
    right = np.array([-up[1], up[0]])
    gaze = points["nose"] - (points["left_ear"] + points["right_ear"]) / 2
    gaze = gaze - (gaze @ up) * up  # the component along the eyes
    radius = HEAD * unit * c.head_size
    centre = face + 0.12 * unit * up
    yield "limb", _points(neck, face), 0.3 * unit, c.head
    if c.ears is not None and not c.pointed:
        for out in (-1, 1):
            yield "circle", _points(centre + 0.75 * radius * (up + out * right)), 0.42 * radius, c.ears
    if c.ears is not None and c.pointed:
        for out in (-1, 1):
            root = centre + 0.55 * radius * (up + out * right)
            tip = centre + 1.6 * radius * up + 0.85 * out * radius * right
            yield "polygon", _points(root - 0.4 * radius * right, tip, root + 0.4 * radius * right), 0, c.ears
    if c.square:
        corners = [(-1, -0.9), (1, -0.9), (1, 0.9), (-1, 0.9)]
        yield "polygon", _points(*(centre + radius * (x * right + y * up) for x, y in corners)), 0, c.head
    else:
        yield "circle", _points(centre), radius, c.head
    if c.hair is not None:
        yield "limb", _points(
            centre + radius * (0.62 * up - 0.6 * right), centre + radius * (0.72 * up + 0.6 * right)
        ), 0.62 * radius, c.hair  # fmt: skip
    if c.face is None:
        return
    kind, colour = c.face
    if kind == "visor":
        yield "limb", _points(
            centre + gaze - 0.35 * radius * right, centre + gaze + 0.35 * radius * right
        ), 0.85 * radius, colour  # fmt: skip
    elif kind == "slit":
        yield "limb", _points(
            centre + gaze - 0.6 * radius * right, centre + gaze + 0.6 * radius * right
        ), 0.42 * radius, colour  # fmt: skip
        yield "limb", _points(centre + gaze - 0.62 * radius * up), 0.4 * radius, colour
    elif kind == "mask":
        low = centre + gaze - 0.38 * radius * up
        yield "limb", _points(low - 0.3 * radius * right, low + 0.3 * radius * right), 0.8 * radius, colour
    else:
        size = 0.32 if kind == "patches" else 0.17
        for out in (-1, 1):
            eye = centre + gaze + radius * (out * 0.42 * right - 0.02 * up)
            yield "circle", _points(eye), size * radius, colour


def figure_mask(
    keypoints: Float[np.ndarray, "17 3"], character: Character, side: int, scale: int
) -> Bool[np.ndarray, "{side} {side}"]:
    """Mask of the pixels of an image of side x side of which the figure covers half or more.

    The figure is painted `scale` times as large, and reduced. Keypoints are in pixels of the small image.
    """
    size = (side * scale, side * scale)
    image, mask = Image.new("RGB", size), Image.new("L", size)
    paint_figure(scale_keypoints(keypoints, scale), character, image, mask)
    return np.asarray(mask.reduce(scale)) > 127


def scale_keypoints(keypoints: Float[np.ndarray, "17 3"], scale: int) -> Float[np.ndarray, "17 3"]:
    """Move keypoints to an image that is `scale` times as large."""
    return np.asarray(keypoints) * [scale, scale, 1]


def _midpoint(points: dict[str, np.ndarray], joint: str) -> np.ndarray:
    return (points[f"left_{joint}"] + points[f"right_{joint}"]) / 2


def _points(*arrays: np.ndarray) -> list[Point]:
    return [(float(x), float(y)) for x, y in arrays]
