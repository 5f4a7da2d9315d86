"""Figures of the synthetic world: COCO keypoints of a posture, by forward kinematics.

Angles are in radians in the image plane: at 0 a limb hangs down, and a positive angle turns it to the image's
right. The person faces the viewer, so that a left limb is on the image's right. Lengths are fractions of the
body's height.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from fyp_jax.pose.skeleton import JOINTS

SIDES = {"left": 1.0, "right": -1.0}
"""For each side of the person, the sign of the x direction in the image that points outward."""

THIGH, SHIN, SPINE, UPPER_ARM, FOREARM = 0.245, 0.235, 0.30, 0.17, 0.16
NECK, EYE, EAR = 0.115, 0.028, 0.06
HALF_SHOULDERS, HALF_HIPS = 0.115, 0.07


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


@dataclass(frozen=True)
class Body:
    """Shape and position of a figure; x, ground and height are fractions of the image's side."""

    height: float
    x: float
    ground: float
    legs: float = 1.0
    arms: float = 1.0
    width: float = 1.0
    turn: float = 0.0
    """Rotation about the vertical, in radians: narrows shoulders and hips, turns the face to the side."""

    @classmethod
    def sample(cls, rng: np.random.Generator) -> "Body":
        """Sample a body that is 0.56 to 0.84 of the image high, of any width, somewhere on the ground."""
        height = rng.uniform(0.56, 0.84)
        return cls(
            height=height,
            x=rng.uniform(0.34, 0.66),
            ground=rng.uniform(max(0.84, height + 0.08), 0.97),
            legs=rng.uniform(0.88, 1.12),
            arms=rng.uniform(0.88, 1.12),
            width=rng.uniform(0.85, 1.2),
            turn=rng.uniform(-0.9, 0.9),
        )


def _bone(angle: float, length: float) -> np.ndarray:
    return length * np.array([np.sin(angle), np.cos(angle)])


def joint_positions(posture: Posture, body: Body) -> Float[np.ndarray, "17 2"]:
    """x and y of each joint as fractions of the image's side, y downwards."""
    h, across = body.height, body.width * np.cos(body.turn)
    joints: dict[str, np.ndarray] = {}
    for (name, out), thigh, shin in zip(SIDES.items(), posture.thighs, posture.shins, strict=True):
        hip = np.array([out * HALF_HIPS * across, 0.0])
        knee = hip + _bone(thigh, THIGH * body.legs)
        joints |= {f"{name}_hip": hip, f"{name}_knee": knee}
        joints[f"{name}_ankle"] = knee + _bone(shin, SHIN * body.legs)
    neck = _bone(np.pi - posture.lean, SPINE)
    along = np.array([np.cos(posture.lean), np.sin(posture.lean)])  # the direction of the shoulders
    for (name, out), arm, forearm in zip(SIDES.items(), posture.arms, posture.forearms, strict=True):
        shoulder = neck + out * HALF_SHOULDERS * across * along
        elbow = shoulder + _bone(arm, UPPER_ARM * body.arms)
        joints |= {f"{name}_shoulder": shoulder, f"{name}_elbow": elbow}
        joints[f"{name}_wrist"] = elbow + _bone(forearm, FOREARM * body.arms)
    tilt = posture.lean + posture.nod
    up, right = _bone(np.pi - tilt, 1.0), np.array([np.cos(tilt), np.sin(tilt)])
    face = neck + NECK * up
    gaze = np.sin(body.turn) * 0.035 * right
    joints["nose"] = face + gaze - 0.005 * up
    for name, out in SIDES.items():
        joints[f"{name}_eye"] = face + gaze + out * EYE * np.cos(body.turn) * right + 0.025 * up
        joints[f"{name}_ear"] = face + out * EAR * np.cos(body.turn) * right + 0.008 * up
    points = np.stack([joints[name] for name in JOINTS])
    feet = max(joints["left_ankle"][1], joints["right_ankle"][1])
    return np.array([body.x, body.ground]) + h * (points - [0.0, feet] + [posture.shift, -posture.rise])
