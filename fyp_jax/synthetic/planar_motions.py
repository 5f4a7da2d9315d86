"""Motions in the image plane: postures over time."""

from collections.abc import Callable

import numpy as np

from fyp_jax.synthetic.kinematics import Posture

PlanarMotion = Callable[[float, float, float], Posture]
"""(cycles since the start, amplitude around 1, direction 1 or -1) -> posture."""


def _sine(cycles: float, phase: float = 0.0) -> float:
    return float(np.sin(2 * np.pi * (cycles + phase)))


def _walk(t: float, a: float, d: float) -> Posture:
    swing, lift = 0.42 * a * _sine(t), [max(0.0, _sine(t, 0.25)), max(0.0, -_sine(t, 0.25))]
    return Posture(
        arms=(0.15 - 0.9 * swing, -0.15 + 0.9 * swing),
        forearms=(0.15 - 0.9 * swing + 0.35 * d, -0.15 + 0.9 * swing + 0.35 * d),
        thighs=(swing, -swing),
        shins=(swing - 0.7 * a * d * lift[0], -swing - 0.7 * a * d * lift[1]),
        lean=0.05 * d,
        rise=0.012 * (1 + _sine(2 * t)),
        shift=0.04 * _sine(t / 4),
    )


def _run(t: float, a: float, d: float) -> Posture:
    swing, lift = 0.75 * a * _sine(t), [max(0.0, _sine(t, 0.25)), max(0.0, -_sine(t, 0.25))]
    return Posture(
        arms=(0.1 - swing, -0.1 + swing),
        forearms=(0.1 - swing + 1.4 * d, -0.1 + swing + 1.4 * d),
        thighs=(swing + 0.15 * d, -swing + 0.15 * d),
        shins=(swing + 0.15 * d - 1.3 * d * lift[0], -swing + 0.15 * d - 1.3 * d * lift[1]),
        lean=0.2 * d,
        rise=0.03 * (1 + _sine(2 * t)),
    )


def _jump(t: float, a: float, d: float) -> Posture:
    up = _sine(t)
    crouch, flight = max(0.0, -up), max(0.0, up)
    arm = 0.4 + 1.5 * flight * a
    return Posture(
        arms=(arm, -arm),
        forearms=(arm + 0.3, -arm - 0.3),
        thighs=(0.1 + 0.75 * crouch, -0.1 - 0.75 * crouch),
        shins=(0.1 - 0.55 * crouch, -0.1 + 0.55 * crouch),
        lean=0.06 * d * crouch,
        rise=0.11 * a * flight,
    )


def _wave_hand(t: float, a: float, d: float) -> Posture:
    high, low = 2.3 + 0.2 * _sine(t / 3), 0.18
    sweep = 2.9 + 0.55 * a * _sine(t)
    left = d > 0
    return Posture(
        arms=(high if left else low, -low if left else -high),
        forearms=(sweep if left else low + 0.1, -low - 0.1 if left else -sweep),
        thighs=(0.1, -0.1),
        shins=(0.06, -0.06),
        lean=0.06 * _sine(t / 2),
        nod=0.12 * _sine(t / 2, 0.2),
        shift=0.015 * _sine(t / 2),
    )


def _squat(t: float, a: float, d: float) -> Posture:
    down = 0.5 - 0.5 * _sine(t, 0.25)
    arm = 0.3 + 1.2 * down
    return Posture(
        arms=(arm, -arm),
        forearms=(arm + 0.15, -arm - 0.15),
        thighs=(0.15 + 1.1 * a * down, -0.15 - 1.1 * a * down),
        shins=(0.12 - 0.35 * down, -0.12 + 0.35 * down),
        lean=0.05 * d * down,
    )


def _kick(t: float, a: float, d: float) -> Posture:
    out = max(0.0, _sine(t)) ** 1.5
    left = d > 0
    leg, still = 0.15 + 1.2 * a * out, 0.08
    arm = 0.6 + 0.5 * out
    return Posture(
        arms=(arm, -arm),
        forearms=(arm + 0.8, -arm - 0.8),
        thighs=(leg if left else still, -still if left else -leg),
        shins=(leg + 0.1 if left else still, -still if left else -leg - 0.1),
        lean=-0.25 * d * out,
    )


def _box(t: float, a: float, d: float) -> Posture:
    punch = [max(0.0, _sine(t)), max(0.0, -_sine(t))]
    guard = 2.5
    arms = [0.5 + 1.05 * p * a for p in punch]
    reach = [arm + guard * (1 - p) for arm, p in zip(arms, punch, strict=True)]
    return Posture(
        arms=(arms[0], -arms[1]),
        forearms=(reach[0] - 0.3, -reach[1] + 0.3),
        thighs=(0.28, -0.28),
        shins=(0.08 + 0.05 * _sine(t), -0.08 + 0.05 * _sine(t)),
        lean=0.15 * _sine(t),
        shift=0.02 * d * _sine(t, 0.1),
    )


def _star(t: float, a: float, d: float) -> Posture:
    """A jumping jack."""
    open_ = 0.5 - 0.5 * _sine(t, 0.25)
    arm, leg = 0.25 + 2.5 * open_, 0.08 + 0.45 * a * open_
    return Posture(
        arms=(arm, -arm),
        forearms=(arm + 0.2, -arm - 0.2),
        thighs=(leg, -leg),
        shins=(leg, -leg),
        rise=0.04 * abs(_sine(t)),
        shift=0.01 * d * _sine(t),
    )


def _stretch(t: float, a: float, d: float) -> Posture:
    bend = 0.45 * a * _sine(t)
    return Posture(
        arms=(2.6 - bend if d > 0 else 0.9, -0.9 if d > 0 else -2.6 - bend),
        forearms=(2.9 - bend if d > 0 else 1.9, -1.9 if d > 0 else -2.9 - bend),
        thighs=(0.25, -0.25),
        shins=(0.2, -0.2),
        lean=-bend,
        nod=-0.3 * bend,
    )


def _dance(t: float, a: float, d: float) -> Posture:
    """The weight moves from foot to foot, the arms swing in turn. This motion is held out of training."""
    weight, free = _sine(t), [max(0.0, -_sine(t)) ** 1.5, max(0.0, _sine(t)) ** 1.5]
    arms = [1.5 + 0.9 * a * _sine(t, 0.2), 1.5 + 0.9 * a * _sine(t, 0.7)]
    bends = [0.9 + 0.7 * _sine(t / 2, 0.1), 0.9 + 0.7 * _sine(t / 2, 0.6)]
    return Posture(
        arms=(arms[0], -arms[1]),
        forearms=(arms[0] + bends[0], -arms[1] - bends[1]),
        thighs=(0.16 + 0.7 * free[0], -0.16 - 0.7 * free[1]),
        shins=(0.1 - 0.35 * free[0], -0.1 + 0.35 * free[1]),
        lean=0.16 * weight,
        nod=0.2 * d * _sine(t / 2),
        rise=0.0,
        shift=0.07 * weight,
    )


PLANAR_MOTIONS: dict[str, PlanarMotion] = {
    "walk": _walk,
    "run": _run,
    "jump": _jump,
    "wave": _wave_hand,
    "squat": _squat,
    "kick": _kick,
    "box": _box,
    "star": _star,
    "stretch": _stretch,
    "dance": _dance,
}
HELD_OUT_MOTION = "dance"
"""The motion that training never has."""
