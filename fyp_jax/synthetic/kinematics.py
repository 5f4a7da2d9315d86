"""Figures of the synthetic world in three dimensions: COCO keypoints of a stance, by forward kinematics.

Angles are in radians. In the image plane a limb at 0 hangs down, and a positive angle turns it to the image's
right. Another angle turns it out of the image plane, towards the viewer, which makes it look shorter. The
whole figure can turn about the vertical; at 0 it faces the viewer, so that a left limb is on the image's
right. Lengths are fractions of the body's height.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from fyp_jax.pose.skeleton import JOINTS

SIDES = {"left": 1.0, "right": -1.0}
"""For each side of the person, the sign of the x direction in the image that points outward."""

THIGH, SHIN, SPINE, UPPER_ARM, FOREARM = 0.245, 0.235, 0.30, 0.17, 0.16
NECK = 0.115
HALF_SHOULDERS, HALF_HIPS = 0.115, 0.07
EAR, EYE = 0.055, 0.028
"""Distance of ear and eye from the head's middle plane."""
NOSE_FORWARD, EYE_FORWARD = 0.055, 0.046
"""Distance of nose and eyes in front of the ears."""


class Posture(NamedTuple):
    """Joint angles of one frame; pairs are (left, right)."""

    arms: tuple[float, float]
    forearms: tuple[float, float]
    thighs: tuple[float, float]
    shins: tuple[float, float]
    lean: float = 0.0
    """Angle of the spine from the vertical, to the image's right."""
    nod: float = 0.0
    """Angle of the head relative to the spine."""
    rise: float = 0.0
    """Height of the feet above the ground."""
    shift: float = 0.0
    """Displacement of the body to the image's right."""


class Stance(NamedTuple):
    """A posture with depth."""

    posture: Posture
    depth: tuple[float, ...] = (0.0,) * 8
    """Angles out of the image plane of arms, forearms, thighs and shins; of each the left, then the right."""
    bend: float = 0.0
    """Angle of the spine out of the image plane: the trunk bends forward."""
    turn: float = 0.0
    """Rotation of the whole figure about the vertical, in radians; at pi it is seen from behind."""


@dataclass(frozen=True)
class Figure:
    """Shape and position of a figure; x, ground and height are fractions of the image's side."""

    height: float
    x: float
    ground: float
    legs: float = 1.0
    arms: float = 1.0
    width: float = 1.0
    head: float = 1.0
    turn: float = 0.0
    """Rotation of the trunk and the head; limbs stay in the image plane."""


def joint_positions(stance: Stance, figure: Figure) -> Float[np.ndarray, "17 2"]:
    """x and y of each joint as fractions of the image's side, y downwards."""
    posture, theta = stance.posture, stance.turn + figure.turn
    cos, sin = np.cos(stance.turn), np.sin(stance.turn)

    def bone(angle: float, depth: float, length: float) -> np.ndarray:
        flat = length * np.cos(depth)
        return np.array([flat * np.sin(angle) * cos + length * np.sin(depth) * sin, flat * np.cos(angle)])

    def chain(name: str, root: np.ndarray, first: int, lengths: tuple[float, float]) -> None:
        index = first + (name == "right")
        pairs = (posture.arms, posture.forearms) if first == 0 else (posture.thighs, posture.shins)
        names = ("shoulder", "elbow", "wrist") if first == 0 else ("hip", "knee", "ankle")
        middle = root + bone(pairs[0][index % 2], stance.depth[index], lengths[0])
        end = middle + bone(pairs[1][index % 2], stance.depth[index + 2], lengths[1])
        joints.update({f"{name}_{joint}": at for joint, at in zip(names, (root, middle, end), strict=True)})

    joints: dict[str, np.ndarray] = {}
    across = figure.width * np.cos(theta)
    neck = bone(np.pi - posture.lean, stance.bend, SPINE)
    lean = posture.lean * cos
    along = np.array([np.cos(lean), np.sin(lean)])  # the direction of the shoulders
    for name, out in SIDES.items():
        hip = np.array([out * HALF_HIPS * across, 0.0])
        chain(name, hip, 4, (THIGH * figure.legs, SHIN * figure.legs))
        shoulder = neck + out * HALF_SHOULDERS * across * along
        chain(name, shoulder, 0, (UPPER_ARM * figure.arms, FOREARM * figure.arms))
    tilt = (posture.lean + posture.nod) * cos
    up, right = np.array([np.sin(tilt), -np.cos(tilt)]), np.array([np.cos(tilt), np.sin(tilt)])
    face = neck + NECK * (0.35 + 0.65 * figure.head) * np.cos(0.7 * stance.bend) * up
    forward, aside = figure.head * np.sin(theta) * right, figure.head * np.cos(theta) * right
    joints["nose"] = face + NOSE_FORWARD * forward - 0.005 * up
    for name, out in SIDES.items():
        joints[f"{name}_eye"] = face + EYE_FORWARD * forward + out * EYE * aside + 0.025 * figure.head * up
        joints[f"{name}_ear"] = face + out * EAR * aside + 0.008 * up
    points = np.stack([joints[name] for name in JOINTS])
    feet = max(joints["left_ankle"][1], joints["right_ankle"][1])
    move = np.array([posture.shift, -posture.rise])
    return np.array([figure.x, figure.ground]) + figure.height * (points - [0.0, feet] + move)


def sees_face(stance: Stance, figure: Figure) -> bool:
    """Whether nose and eyes are on the viewer's side of the head."""
    return bool(np.cos(stance.turn + figure.turn) > -0.3)
