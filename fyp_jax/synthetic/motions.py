"""The motions of the synthetic world: those in the image plane, and dances with depth, turns and jumps."""

from collections.abc import Callable

import numpy as np

from fyp_jax.synthetic.kinematics import Posture, Stance
from fyp_jax.synthetic.planar_motions import HELD_OUT_MOTION, PLANAR_MOTIONS

Motion = Callable[[float], Stance]
"""Cycles since the start -> stance."""

ARM_KEYS = (
    # arm and forearm, 0 hangs down and pi points up, positive outwards; their angles towards the viewer
    (0.12, 0.18, 0.0, 0.2), (0.15, 0.3, 0.0, 0.3), (0.75, -0.75, 0.0, 0.1), (1.5, 1.55, 0.0, 0.0),
    (2.9, 3.05, 0.0, 0.0),
    (2.4, 2.5, 0.0, 0.0), (2.3, 3.9, 0.0, 0.0), (1.5, 3.0, 0.0, 0.0), (0.5, -1.7, 0.3, 0.5),
    (0.3, 0.6, 0.9, 0.9),
    (0.9, 2.3, 0.0, 0.3), (-0.25, -0.5, 0.2, 0.3), (1.2, 0.4, 0.0, 0.0), (1.9, 1.2, 0.0, 0.0),
    (2.7, 2.0, 0.0, 0.0),
    (0.6, 1.4, -0.4, 0.2), (0.4, 2.6, 0.4, 0.5), (2.0, 3.3, 0.2, 0.0),
)  # fmt: skip
LEG_KEYS = (
    (0.08, 0.05, 0.0, 0.0), (0.1, 0.08, 0.0, 0.0), (0.22, 0.18, 0.0, 0.0), (0.42, 0.36, 0.0, 0.0),
    (0.4, -0.2, 0.1, 0.0),
    (0.5, -0.25, 0.9, -0.5), (1.2, 1.25, 0.0, 0.0), (0.8, 0.05, 0.0, 0.0), (-0.16, -0.22, 0.1, 0.1),
    (0.9, -0.45, 0.5, -0.4), (0.1, -0.9, 0.0, -0.3), (0.7, 0.6, 0.0, 0.0), (0.3, 0.1, 1.1, -0.2),
)  # fmt: skip
STANDING = 4
"""The first so many of LEG_KEYS are straight legs."""
KEYS = 24
"""Number of key stances of a routine, after which it begins again."""


def make_motion(name: str, rng: np.random.Generator) -> Motion:
    """A motion of `MOTIONS`, with amplitude, direction and whatever else it has sampled from `rng`."""
    if name in DANCES:
        return DANCES[name](rng)
    amplitude, direction = rng.uniform(0.75, 1.2), float(rng.choice([-1, 1]))
    motion = PLANAR_MOTIONS[name]
    return lambda t: Stance(motion(t, amplitude, direction))


def _pairs(values: np.ndarray) -> list[tuple[float, float]]:
    """Outward angles [4 pairs, left and right] -> angles in the image: the left limb turns to the right."""
    return [(float(left), -float(right)) for left, right in values.reshape(4, 2)]


def _stance(limbs: np.ndarray, trunk: np.ndarray) -> Stance:
    """A stance of 8 outward angles, 8 depths, and lean, nod, rise, shift, bend and turn."""
    arms, forearms, thighs, shins = _pairs(limbs[:8])
    lean, nod, rise, shift, bend, turn = (float(value) for value in trunk)
    posture = Posture(arms, forearms, thighs, shins, lean, nod, max(0.0, rise), shift)
    return Stance(posture, tuple(float(depth) for depth in limbs[8:]), bend, turn)


def _routine(rng: np.random.Generator) -> Motion:
    """Key stances one after the other, with smooth ways between them."""
    arms = rng.integers(len(ARM_KEYS), size=(KEYS, 2))
    legs = np.stack([rng.integers(STANDING, size=KEYS), rng.integers(len(LEG_KEYS), size=KEYS)], axis=1)
    legs = rng.permuted(legs, axis=1)  # one of them stands
    for limb, equal in ((arms, 0.45), (legs, 0.4)):
        limb[:, 1] = np.where(rng.random(KEYS) < equal, limb[:, 0], limb[:, 1])
    # [key, arm or leg, left or right, angle or depth, upper or lower] -> the angles, then the depths
    keys = np.stack([np.array(ARM_KEYS)[arms], np.array(LEG_KEYS)[legs]], axis=1).reshape(KEYS, 2, 2, 2, 2)
    limbs = keys.transpose(0, 3, 1, 4, 2).reshape(KEYS, 16)
    limbs[:, :8] += rng.normal(0, 0.1, (KEYS, 8))
    half_turns = np.cumsum(rng.choice([-1, 0, 1], p=[0.025, 0.95, 0.025], size=KEYS))
    turn = np.pi * half_turns + rng.uniform(-0.8, 0.8, KEYS)
    rise = np.where(rng.random(KEYS) < 0.15, rng.uniform(0.06, 0.14, KEYS), 0.0)
    lean, nod, shift = rng.normal(0, 0.14, KEYS), rng.normal(0, 0.1, KEYS), rng.uniform(-0.07, 0.07, KEYS)
    bend = np.clip(rng.normal(0.1, 0.35, KEYS), -0.15, 1.0)
    trunk = np.stack([lean, nod, rise, shift, bend, turn], axis=1)
    pace = rng.uniform(1.0, 1.6)

    def motion(t: float) -> Stance:
        whole = int(np.floor(t * pace))
        part = min(1.0, (t * pace - whole) / 0.85)  # a key is held for a moment
        weight = part * part * (3 - 2 * part)
        a, b = whole % KEYS, (whole + 1) % KEYS
        return _stance(limbs[a] + weight * (limbs[b] - limbs[a]), trunk[a] + weight * (trunk[b] - trunk[a]))

    return motion


def _free(rng: np.random.Generator) -> Motion:
    """Each limb swings on its own, in depth too, so that training sees a wide range of poses."""
    low = [0.0] * 2 + [-0.6] * 2 + [0.0] * 2 + [-0.6] * 2 + [-0.3] * 8
    high = [2.7] * 2 + [3.4] * 2 + [0.8] * 2 + [0.6] * 2 + [0.7] * 8
    centre, swing = rng.uniform(low, high), rng.uniform(0.0, [0.9] * 4 + [0.4] * 4 + [0.4] * 8)
    phase, speed = rng.uniform(size=16), rng.uniform(0.5, 1.5, size=16)
    lean, nod, shift = rng.uniform(-0.25, 0.25), rng.uniform(-0.3, 0.3), rng.uniform(0, 0.05)
    rise, turn, sway = max(0.0, rng.uniform(-0.1, 0.08)), rng.uniform(-1.2, 1.2), rng.uniform(0, 0.6)
    if rng.random() < 0.1:
        turn += np.pi
    bend = max(0.0, rng.uniform(-0.7, 0.9))

    def motion(t: float) -> Stance:
        limbs = centre + swing * np.sin(2 * np.pi * (t * speed + phase))
        slow = np.sin(2 * np.pi * (t / 2 + phase[0]))
        return _stance(
            limbs, np.array([lean + 0.1 * slow, nod, rise, shift * slow, bend, turn + sway * slow])
        )

    return motion


def _spin(rng: np.random.Generator) -> Motion:
    """Turns about the vertical, one arm or both held out or up."""
    start, direction = rng.uniform(0, 2 * np.pi), rng.choice([-1, 1])
    arms = np.array([ARM_KEYS[i] for i in rng.integers(len(ARM_KEYS), size=2)])
    knee = rng.uniform(0, 0.6)

    def motion(t: float) -> Stance:
        beat = np.sin(2 * np.pi * t)
        limbs = np.array(
            [*arms[:, :2].T.ravel(), 0.1, 0.15 + knee, 0.08, 0.1 - knee, *arms[:, 2:].T.ravel(), 0, 0.3, 0, 0]
        )
        limbs[:4] += 0.15 * beat
        return _stance(
            limbs, np.array([0.05 * beat, 0.0, 0.0, 0.03 * beat, 0.0, start + direction * 2.2 * t])
        )

    return motion


def _sway(rng: np.random.Generator) -> Motion:
    """Hips and arms over the head sway from side to side, the knees bend in time."""
    height, wide, phase = rng.uniform(2.0, 2.9), rng.uniform(0.2, 0.45), rng.uniform()
    bend, turn = rng.uniform(0.1, 0.5), rng.uniform(-0.7, 0.7)

    def motion(t: float) -> Stance:
        side, beat = np.sin(2 * np.pi * t), 0.5 + 0.5 * np.sin(4 * np.pi * (t + phase))
        arm, leg = height + 0.35 * side * np.array([1, -1]), wide + bend * beat
        forearm = height + 0.5 + 0.55 * np.sin(2 * np.pi * (t - 0.1)) * np.array([1, -1])
        limbs = np.array([*arm, *forearm, leg, leg, wide - bend * beat, wide - bend * beat, *(0.0,) * 8])
        return _stance(limbs, np.array([0.22 * side, -0.12 * side, 0.0, 0.06 * side, 0.0, turn]))

    return motion


def _lunge(rng: np.random.Generator) -> Motion:
    """Deep steps to the side, with one arm up and the other out."""
    depth, high = rng.uniform(0.6, 0.95), rng.uniform(2.2, 2.9)

    def motion(t: float) -> Stance:
        side = np.sin(2 * np.pi * t)
        right, left = max(0.0, side), max(0.0, -side)
        arms = np.array([1.1 + (high - 1.1) * right, 1.1 + (high - 1.1) * left])
        thighs = np.array([0.15 + depth * left + 0.4 * right, 0.15 + depth * right + 0.4 * left])
        shins = np.array([0.1 - 0.25 * left + 0.4 * right, 0.1 - 0.25 * right + 0.4 * left])
        limbs = np.array([*arms, *(arms + 0.2 * side), *thighs, *shins, *(0.0,) * 8])
        return _stance(limbs, np.array([-0.2 * side, 0.1 * side, 0.0, -0.04 * side, 0.0, -0.5 * side]))

    return motion


DANCES: dict[str, Callable[[np.random.Generator], Motion]] = {
    "routine": _routine,
    "free": _free,
    "spin": _spin,
    "sway": _sway,
    "lunge": _lunge,
}
MOTIONS: tuple[str, ...] = (*PLANAR_MOTIONS, *DANCES)
TRAIN_MOTIONS = tuple(name for name in MOTIONS if name != HELD_OUT_MOTION)
TRAIN_WEIGHTS = tuple({"routine": 6.0, "free": 4.0}.get(name, 1.0) for name in TRAIN_MOTIONS)
"""How often training scenes have each motion, relative to each other."""
