"""The figures of the mini world: what each character wears, and how joints become a drawn body."""

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
    """Colours of a body's parts, how stout it is, and what its head looks like."""

    torso: Colour
    arms: Colour
    forearms: Colour
    thighs: Colour
    shins: Colour
    head: Colour
    hands: Colour
    feet: Colour
    stout: float = 1.0
    head_size: float = 1.0
    square: bool = False
    """A head with corners."""
    ears: Colour | None = None
    pointed: bool = False
    """Ears like a bat's rather than round."""
    face: tuple[str, Colour] | None = None
    """visor, slit, mask, eyes, patches; and its colour."""
    hair: Colour | None = None
    cape: Colour | None = None
    belt: Colour | None = None
    chest: tuple[str, Colour] | None = None
    """dot, emblem, panel; and its colour."""


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
        stout=1.3, hair=BLACK, face=("eyes", BLACK), belt=(104, 40, 140),
    ),
    "astronaut": Character(
        torso=(244, 120, 30), arms=(244, 120, 30), forearms=(244, 120, 30), thighs=(244, 120, 30),
        shins=(244, 120, 30), head=WHITE, hands=WHITE, feet=WHITE,
        stout=1.12, head_size=1.3, face=("visor", (30, 50, 90)), belt=WHITE, chest=("panel", WHITE),
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
        feet=BLACK, stout=1.2, head_size=1.35, ears=BLACK, face=("patches", BLACK),
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
"""Widths of limbs and radius of the head, in lengths of the torso."""


def body_length(points: dict[str, np.ndarray]) -> float:
    """Length of the torso in pixels, or what the legs say it is where the body is foreshortened."""
    neck, hips = _middle(points, "shoulder"), _middle(points, "hip")
    legs = [
        np.linalg.norm(points[f"{side}_hip"] - points[f"{side}_knee"])
        + np.linalg.norm(points[f"{side}_knee"] - points[f"{side}_ankle"])
        for side in ("left", "right")
    ]
    return float(max(np.linalg.norm(neck - hips), 0.55 * max(legs)))


def draw_figure(
    keypoints: Float[np.ndarray, "17 3"], character: Character, image: Image.Image, mask: Image.Image
) -> None:
    """Draw a figure with these joints, in pixels, over an RGB image, and white into a mask ("L")."""
    points = {name: point[:2] for name, point in zip(JOINTS, np.asarray(keypoints, float), strict=True)}
    unit = body_length(points)
    colours, shape = ImageDraw.Draw(image), ImageDraw.Draw(mask)
    for kind, places, width, colour in _parts(points, character, unit):
        for draw, fill in ((colours, colour), (shape, 255)):
            if kind == "limb":
                draw.line(places, fill=fill, width=max(1, round(width)))
                for x, y in places:
                    draw.circle((x, y), width / 2, fill=fill)
            elif kind == "disc":
                draw.circle(places[0], width, fill=fill)
            else:
                draw.polygon(places, fill=fill)


def _parts(
    points: dict[str, np.ndarray], character: Character, unit: float
) -> Iterator[tuple[str, list[Point], float, Colour]]:
    """(limb, disc or area; where; width or radius; colour), from the back to the front."""
    c, stout = character, character.stout * unit
    neck, hips = _middle(points, "shoulder"), _middle(points, "hip")
    down = (hips - neck) / max(float(np.linalg.norm(hips - neck)), 1e-6)
    across = np.array([-down[1], down[0]])  # to the person's left, in the picture's right
    across = across if across[0] >= 0 else -across
    if c.cape is not None:
        hem = hips + 0.75 * unit * down
        yield "area", _points(
            points["left_shoulder"], points["right_shoulder"],
            hem - 0.62 * unit * across, hem + 0.62 * unit * across,
        ), 0, c.cape  # fmt: skip
    for side in ("right", "left"):
        hip, knee, ankle = (points[f"{side}_{name}"] for name in ("hip", "knee", "ankle"))
        yield "limb", _points(knee, ankle), 0.92 * LEG * stout, c.shins
        yield "limb", _points(hip, knee), LEG * stout, c.thighs
        yield "disc", _points(ankle), 0.27 * stout, c.feet
    half = 0.5 * ARM * stout
    shoulders = [
        points["left_shoulder"] + half * across * 0.4,
        points["right_shoulder"] - half * across * 0.4,
    ]
    sides = max(
        0.3 * stout, float(np.linalg.norm(points["left_hip"] - points["right_hip"])) / 2 + 0.18 * stout
    )
    waist = [hips - sides * across, hips + sides * across]
    trunk = _points(*shoulders, *waist)
    yield "area", trunk, 0, c.torso
    yield "limb", [trunk[0], trunk[1]], 0.8 * ARM * stout, c.torso
    yield "limb", _points(neck, hips), max(0.5 * stout, 1), c.torso
    if c.belt is not None:
        yield "limb", _points(hips - 0.8 * sides * across, hips + 0.8 * sides * across), 0.22 * unit, c.belt
    if c.chest is not None:
        kind, colour = c.chest
        place = neck + (0.28 if kind != "panel" else 0.42) * unit * down
        wide = {"dot": 0.0, "emblem": 0.16, "panel": 0.14}[kind] * unit
        yield "limb", _points(place - wide * across, place + wide * across), 0.24 * unit, colour
    yield from _head(points, c, unit, neck)
    for side in ("right", "left"):
        shoulder, elbow, wrist = (points[f"{side}_{name}"] for name in ("shoulder", "elbow", "wrist"))
        yield "limb", _points(shoulder, elbow), ARM * stout, c.arms
        yield "limb", _points(elbow, wrist), 0.92 * ARM * stout, c.forearms
        yield "disc", _points(wrist), 0.22 * stout, c.hands


def _head(
    points: dict[str, np.ndarray], c: Character, unit: float, neck: np.ndarray
) -> Iterator[tuple[str, list[Point], float, Colour]]:
    face = np.mean(
        [points[name] for name in ("nose", "left_eye", "right_eye", "left_ear", "right_ear")], axis=0
    )
    up = (face - neck) / max(float(np.linalg.norm(face - neck)), 1e-6)
    right = np.array([-up[1], up[0]])
    looks = points["nose"] - (points["left_ear"] + points["right_ear"]) / 2
    looks = looks - (looks @ up) * up  # sideways only
    radius = HEAD * unit * c.head_size
    middle = face + 0.12 * unit * up
    yield "limb", _points(neck, face), 0.3 * unit, c.head
    if c.ears is not None and not c.pointed:
        for out in (-1, 1):
            yield "disc", _points(middle + 0.75 * radius * (up + out * right)), 0.42 * radius, c.ears
    if c.ears is not None and c.pointed:
        for out in (-1, 1):
            root = middle + 0.55 * radius * (up + out * right)
            tip = middle + 1.6 * radius * up + 0.85 * out * radius * right
            yield "area", _points(root - 0.4 * radius * right, tip, root + 0.4 * radius * right), 0, c.ears
    if c.square:
        corners = [(-1, -0.9), (1, -0.9), (1, 0.9), (-1, 0.9)]
        yield "area", _points(*(middle + radius * (x * right + y * up) for x, y in corners)), 0, c.head
    else:
        yield "disc", _points(middle), radius, c.head
    if c.hair is not None:
        yield "limb", _points(
            middle + radius * (0.62 * up - 0.6 * right), middle + radius * (0.72 * up + 0.6 * right)
        ), 0.62 * radius, c.hair  # fmt: skip
    if c.face is None:
        return
    kind, colour = c.face
    if kind == "visor":
        yield "limb", _points(
            middle + looks - 0.35 * radius * right, middle + looks + 0.35 * radius * right
        ), 0.85 * radius, colour  # fmt: skip
    elif kind == "slit":
        yield "limb", _points(
            middle + looks - 0.6 * radius * right, middle + looks + 0.6 * radius * right
        ), 0.42 * radius, colour  # fmt: skip
        yield "limb", _points(middle + looks - 0.62 * radius * up), 0.4 * radius, colour
    elif kind == "mask":
        low = middle + looks - 0.38 * radius * up
        yield "limb", _points(low - 0.3 * radius * right, low + 0.3 * radius * right), 0.8 * radius, colour
    else:
        size = 0.32 if kind == "patches" else 0.17
        for out in (-1, 1):
            place = middle + looks + radius * (out * 0.42 * right - 0.02 * up)
            yield "disc", _points(place), size * radius, colour


def figure_mask(
    keypoints: Float[np.ndarray, "17 3"], character: Character, side: int, scale: int
) -> Bool[np.ndarray, "{side} {side}"]:
    """Which pixels of a picture of `side` the figure covers by half or more; drawn `scale` times as large."""
    size = (side * scale, side * scale)
    image, mask = Image.new("RGB", size), Image.new("L", size)
    draw_figure(scaled(keypoints, scale), character, image, mask)
    return np.asarray(mask.reduce(scale)) > 127


def scaled(keypoints: Float[np.ndarray, "17 3"], scale: int) -> Float[np.ndarray, "17 3"]:
    """The same joints in a picture that is `scale` times as large."""
    return np.asarray(keypoints) * [scale, scale, 1]


def _middle(points: dict[str, np.ndarray], joint: str) -> np.ndarray:
    return (points[f"left_{joint}"] + points[f"right_{joint}"]) / 2


def _points(*places: np.ndarray) -> list[Point]:
    return [(float(x), float(y)) for x, y in places]
