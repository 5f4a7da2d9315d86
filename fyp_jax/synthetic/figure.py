"""A figure from its keypoints and its look: limbs, trunk, clothes and head, from back to front.

The keypoints alone say how the figure stands and which way it looks, so that any keypoints can be drawn.
"""

import numpy as np
from jaxtyping import Float

from fyp_jax.pose.skeleton import JOINTS
from fyp_jax.synthetic.heads import Head, draw_head, hair_behind
from fyp_jax.synthetic.looks import Look
from fyp_jax.synthetic.parts import (
    ARMS,
    CAPE,
    DETAIL,
    FEET,
    FOREARMS,
    HANDS,
    HEAD,
    SHINS,
    SKIRT,
    THIGHS,
    TORSO,
)
from fyp_jax.synthetic.shapes import Colour, Group, Shape, disc, limb, polygon, shade

OUTLINE = 0.036
"""Width of outlines in units of the torso's length."""
ARM, WRIST, HIP, KNEE, ANKLE = 0.15, 0.105, 0.215, 0.165, 0.12
"""Half widths of the limbs, in units of the torso's length; a shoulder's is ARM."""
HEAD_RADIUS, HAND, FOOT = 0.385, 0.15, 0.13

Vectors = dict[str, np.ndarray]


def draw_figure(keypoints: Float[np.ndarray, "17 3"], look: Look) -> list[Group]:
    """The groups of shapes of a figure, in pixels, from back to front. Confidences are ignored."""
    at: Vectors = {name: point[:2] for name, point in zip(JOINTS, np.asarray(keypoints, float), strict=True)}
    at["neck"], at["hips"] = _middle(at, "shoulder"), _middle(at, "hip")
    unit = torso_length(at)
    head = _head(at, look, unit)
    outline = max(0.6, OUTLINE * unit)
    behind = bool(np.cos(head.yaw) < -0.3)
    turned = abs(np.sin(head.yaw)) > 0.75
    near = "right" if np.sin(head.yaw) > 0 else "left"  # the side of a turned figure that the viewer sees
    far = "left" if near == "right" else "right"
    arms = {side: _arm(at, look, unit, side, outline) for side in ("left", "right")}
    legs = [_leg(at, look, unit, side, outline, float(np.sin(head.yaw))) for side in (far, near)]
    cape = _cape(at, look, unit, outline)
    groups: list[Group] = []
    if not behind:
        groups += cape + hair_behind(head, look)
    if turned:
        groups += arms[far]
    groups += [group for leg in legs for group in leg]
    groups += _trunk(at, look, unit, outline, behind)
    if behind:
        groups += cape
    groups += draw_head(head, look)
    if behind:
        groups += hair_behind(head, look)
    return groups + ([] if turned else arms[far]) + arms[near]


def torso_length(at: Vectors) -> float:
    """Length of the torso in pixels; at least 0.55 of the longer leg, for bodies that are foreshortened."""
    legs = [
        np.linalg.norm(at[f"{side}_hip"] - at[f"{side}_knee"])
        + np.linalg.norm(at[f"{side}_knee"] - at[f"{side}_ankle"])
        for side in ("left", "right")
    ]
    return float(max(np.linalg.norm(at["neck"] - at["hips"]), 0.55 * max(legs), 1.0))


def _head(at: Vectors, look: Look, unit: float) -> Head:
    ears = at["left_ear"] - at["right_ear"]
    middle = (at["left_ear"] + at["right_ear"]) / 2
    up = _unit(middle - at["neck"])
    right = np.array([-up[1], up[0]])
    yaw = float(np.arctan2(2 * (at["nose"] - middle) @ right, ears @ right))
    radius = HEAD_RADIUS * unit * look.head_size
    lowest = at["neck"] + 0.86 * radius * up  # the chin is at the neck
    centre = max(middle + 0.06 * unit * up, lowest, key=lambda point: float((point - at["neck"]) @ up))
    return Head(centre, up, right, radius, yaw)


def _leg(at: Vectors, look: Look, unit: float, side: str, outline: float, aside: float) -> list[Group]:
    hip, knee, ankle = (at[f"{side}_{name}"] for name in ("hip", "knee", "ankle"))
    girth = look.stoutness * unit
    down, out = _unit(ankle - knee), 1.0 if side == "left" else -1.0
    if (at["left_hip"] - at["right_hip"])[0] < 0:
        out = -out
    ahead = np.array([down[1], -down[0]]) * (aside if abs(aside) > 0.3 else 0.45 * out)
    toe = ankle + unit * (0.2 * ahead / max(0.45, float(np.linalg.norm(ahead))) + 0.09 * down)
    shoe = limb(ankle + 0.02 * unit * down, toe, FOOT * girth, 0.105 * girth, look.feet, FEET)
    shin = limb(knee, ankle, KNEE * girth, ANKLE * girth, look.shins, SHINS)
    thigh = limb(hip, knee, HIP * girth, (KNEE + 0.01) * girth, look.thighs, THIGHS)
    return [Group((shoe,), outline), Group((shin, thigh), outline)]


def _arm(at: Vectors, look: Look, unit: float, side: str, outline: float) -> list[Group]:
    shoulder, elbow, wrist = (at[f"{side}_{name}"] for name in ("shoulder", "elbow", "wrist"))
    girth = look.stoutness * unit
    middle = (ARM + WRIST) / 2 + 0.01
    hand = wrist + 0.07 * unit * _unit(wrist - elbow)
    shapes = [
        disc(hand, HAND * girth, look.hands, HANDS),
        limb(elbow, wrist, middle * girth, WRIST * girth, look.forearms, FOREARMS),
        limb(shoulder, elbow, ARM * girth, middle * girth, look.arms, ARMS),
    ]
    if look.sleeve is not None:
        shapes.append(
            limb(
                shoulder,
                shoulder + 0.5 * (elbow - shoulder),
                1.15 * ARM * girth,
                1.12 * ARM * girth,
                look.sleeve,
                ARMS,
            )
        )
    return [Group(tuple(shapes), outline)]


def _trunk(at: Vectors, look: Look, unit: float, outline: float, behind: bool) -> list[Group]:
    neck, hips, girth = at["neck"], at["hips"], look.stoutness * unit
    down = _unit(hips - neck)
    across = np.array([down[1], -down[0]])  # to the image's right
    shoulder, hip = _half_width(at, "shoulder", across, unit), _half_width(at, "hip", across, unit)
    rounding = 0.1 * girth
    shoulder, hip = shoulder + 0.02 * girth, hip + 0.1 * girth
    waist = neck + 0.66 * (hips - neck)
    outer = [
        neck - shoulder * across, neck + shoulder * across, waist + 0.92 * (hip * across),
        hips + hip * across, hips - hip * across, waist - 0.92 * (hip * across),
    ]  # fmt: skip
    throat = limb(neck, neck - 0.22 * unit * down, 0.12 * unit, 0.12 * unit, look.head, HEAD)
    trunk = polygon(outer, look.torso, TORSO, rounding)
    details: list[Shape] = []
    length = float(np.linalg.norm(hips - neck))

    def row(share: float, radius: float, colour: Colour, part: int, inset: float = 0.0) -> Shape:
        """A band across the trunk, at a share of its length from the neck."""
        half = shoulder + (hip - shoulder) * share + 0.03 * girth - inset
        middle = neck + share * length * down
        return limb(middle - half * across, middle + half * across, radius, radius, colour, part)

    if look.stripes is not None:
        details += [row(share, 0.045 * unit, look.stripes, DETAIL) for share in (0.2, 0.48, 0.76)]
    pelvis: list[Group] = []
    if look.briefs is not None:
        crotch = [
            hips - (hip + 0.05 * girth) * across - 0.12 * unit * down,
            hips + (hip + 0.05 * girth) * across - 0.12 * unit * down,
            hips + 0.2 * unit * down,
        ]
        pelvis.append(Group((polygon(crotch, look.briefs, THIGHS, 0.05 * girth),)))
    if look.skirt is not None:
        pelvis.append(Group((_skirt(at, look, unit, hip, across, down),), outline))
    if look.belt is not None:
        details.append(row(0.93, 0.075 * unit, look.belt, DETAIL, 0.02 * girth))
    if look.emblem is not None and not behind:
        details += _emblem(
            look.emblem, neck + 0.4 * length * down, across * min(1.0, shoulder / (0.3 * unit)), down, unit
        )
    return [Group((throat,), outline), Group((trunk,), outline), *pelvis, Group(tuple(details))]


def _skirt(at: Vectors, look: Look, unit: float, hip: float, across: np.ndarray, down: np.ndarray) -> Shape:
    """From the waist to hems that follow both thighs, to the image's left and right."""
    assert look.skirt is not None
    length, colour = look.skirt
    hems = [
        at[f"{side}_hip"] + length * (at[f"{side}_knee"] - at[f"{side}_hip"]) for side in ("left", "right")
    ]
    hems.sort(key=lambda hem: float(hem @ across))
    waist = at["hips"] - 0.14 * unit * down
    flare = (0.2 + 0.14 * length) * unit
    corners = [
        waist - 0.9 * hip * across,
        waist + 0.9 * hip * across,
        hems[1] + flare * across,
        hems[0] - flare * across,
    ]
    return polygon(corners, colour, SKIRT, 0.05 * unit)


def _cape(at: Vectors, look: Look, unit: float, outline: float) -> list[Group]:
    if look.cape is None:
        return []
    down = _unit(at["hips"] - at["neck"])
    across = np.array([down[1], -down[0]])
    hang = _unit(down + np.array([0.0, 0.8]))  # the hem hangs down, whichever way the trunk leans
    hem = at["hips"] + 0.85 * unit * hang
    half = max(0.3 * unit, _half_width(at, "shoulder", across, unit))
    corners = [
        at["neck"] - half * across,
        at["neck"] + half * across,
        hem + 0.72 * unit * across,
        hem - 0.72 * unit * across,
    ]
    return [Group((polygon(corners, look.cape, CAPE, 0.06 * unit),), outline)]


def _emblem(
    emblem: tuple[str, Colour, Colour], centre: np.ndarray, across: np.ndarray, down: np.ndarray, unit: float
) -> list[Shape]:
    kind, colour, second = emblem

    def points(*offsets: tuple[float, float]) -> list[np.ndarray]:
        return [centre + unit * (x * across + y * down) for x, y in offsets]

    def polar(count: int, radii: tuple[float, ...]) -> list[np.ndarray]:
        angles = np.arange(count) * 2 * np.pi / count - np.pi / 2
        return points(
            *(
                (radii[i % len(radii)] * np.cos(a), radii[i % len(radii)] * np.sin(a))
                for i, a in enumerate(angles)
            )
        )

    if kind == "star":
        return [polygon(polar(10, (0.21, 0.09)), colour, DETAIL)]
    if kind == "heart":
        left, right, tip = points((-0.085, -0.06), (0.085, -0.06), (0.0, 0.19))
        corners = points((-0.165, 0.0), (0.0, -0.03), (0.165, 0.0))
        return [
            disc(left, 0.1 * unit, colour, DETAIL),
            disc(right, 0.1 * unit, colour, DETAIL),
            polygon([*corners, tip], colour, DETAIL),
        ]
    if kind == "disc":
        return [disc(centre, 0.16 * unit, colour, DETAIL)]
    if kind == "reactor":
        return [disc(centre, 0.14 * unit, second, DETAIL), disc(centre, 0.1 * unit, colour, DETAIL)]
    if kind == "diamond":
        outer = points((-0.14, -0.16), (0.14, -0.16), (0.24, -0.04), (0.0, 0.22), (-0.24, -0.04))
        inner = points((-0.11, -0.08), (0.11, -0.08), (0.0, 0.1))
        return [polygon(outer, colour, DETAIL), polygon(inner, second, DETAIL)]
    if kind == "bat":
        wings = points(
            (-0.2, -0.05),
            (-0.05, -0.02),
            (-0.04, -0.08),
            (0.04, -0.08),
            (0.05, -0.02),
            (0.2, -0.05),
            (0.1, 0.06),
            (0.0, 0.1),
            (-0.1, 0.06),
        )
        oval = [
            centre + unit * (0.27 * np.cos(a) * across + 0.16 * np.sin(a) * down)
            for a in np.linspace(0, 2 * np.pi, 20)
        ]
        return [polygon(oval, colour, DETAIL), polygon(wings, second, DETAIL)]
    if kind == "panel":
        box = points((-0.16, -0.08), (0.16, -0.08), (0.16, 0.12), (-0.16, 0.12))
        lights = points((-0.07, 0.02), (0.07, 0.02))
        return [
            polygon(box, colour, DETAIL, 0.04 * unit),
            *(disc(at, 0.05 * unit, second, DETAIL) for at in lights),
        ]
    lines = [
        (a, b)
        for a, b in (
            points((-0.2, -0.1), (0.0, -0.06)),
            points((0.2, -0.1), (0.0, -0.06)),
            points((0.0, 0.08), (0.0, 0.34)),
        )
    ]
    return [limb(a, b, 0.025 * unit, 0.025 * unit, shade(colour, 0.95), DETAIL) for a, b in lines]


def _half_width(at: Vectors, joint: str, across: np.ndarray, unit: float) -> float:
    """Half the distance of two joints; never so small that a trunk seen from the side is a line."""
    return max(0.17 * unit, abs(float((at[f"left_{joint}"] - at[f"right_{joint}"]) @ across)) / 2)


def _middle(at: Vectors, joint: str) -> np.ndarray:
    return (at[f"left_{joint}"] + at[f"right_{joint}"]) / 2


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(float(np.linalg.norm(vector)), 1e-6)
