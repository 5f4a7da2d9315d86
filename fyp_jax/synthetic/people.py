"""Who stands where: the figures of a scene and their keypoints over time."""

import dataclasses

import numpy as np
from jaxtyping import Float

from fyp_jax.pose.skeleton import JOINTS
from fyp_jax.synthetic.kinematics import Figure, Stance, joint_positions, sees_face
from fyp_jax.synthetic.motions import Motion, make_motion

FACE = [JOINTS.index(name) for name in ("nose", "left_eye", "right_eye")]
FRAMINGS = ("whole", "small", "close", "aside")
FRAMING_WEIGHTS = (0.68, 0.12, 0.12, 0.08)
"""How often one person is seen so: large and whole; small; nearer than the frame is high; at its side."""
MISSING = 0.12
"""Fraction of the people some of whose joints are missing, as where a detector did not see them."""


def sample_figure(rng: np.random.Generator, child: bool, framing: str) -> Figure:
    """A figure of any proportions; `framing` is one of FRAMINGS."""
    low, high = {"whole": (0.66, 0.84), "small": (0.4, 0.62), "close": (0.95, 1.5), "aside": (0.6, 0.95)}[
        framing
    ]
    height = rng.uniform(low, high) * (0.88 if child else 1.0)
    ground = (
        rng.uniform(min(0.96, max(0.86, height + 0.1)), 0.97)
        if framing != "small"
        else rng.uniform(0.74, 0.96)
    )
    if framing == "close":
        ground = height + rng.uniform(0.08, 0.22)  # the head is in the frame, the feet are below it
    x = {"small": rng.uniform(0.15, 0.85), "aside": rng.choice([0.06, 0.94]) + rng.uniform(-0.08, 0.08)}
    return Figure(
        height=height,
        x=float(x.get(framing, rng.uniform(0.36, 0.64))),
        ground=ground,
        legs=rng.uniform(0.86, 1.18) * (0.86 if child else 1.0),
        arms=rng.uniform(0.86, 1.2) * (0.92 if child else 1.0),
        width=rng.uniform(0.68, 1.2),
        head=rng.uniform(0.92, 1.08) * (1.25 if child else 1.0),
        turn=rng.uniform(-0.8, 0.8),
    )


def people_keypoints(
    characters: tuple[str, ...], motion: str, frames: range, seed: int
) -> Float[np.ndarray, "f p 17 3"]:
    """Keypoints of the people of a scene in given frames: x and y as fractions of the side, and a confidence.

    It is 0 for joints outside of the frame, for the face of a person seen from behind, and for some others,
    that a detector could miss. Their positions are right all the same.
    """
    people = []
    rng = np.random.default_rng([seed, 51])
    framing = str(rng.choice(FRAMINGS, p=FRAMING_WEIGHTS))
    for index, name in enumerate(characters):
        if len(characters) > 1:
            figure = sample_figure(rng, name == "child", "whole")
            height = figure.height * rng.uniform(0.72, 0.92) * (1.0 if len(characters) == 2 else 0.8)
            x = 0.5 + (index - (len(characters) - 1) / 2) * 0.9 / len(characters) + rng.uniform(-0.05, 0.05)
            figure = dataclasses.replace(figure, height=height, x=x, ground=rng.uniform(0.84, 0.96))
        else:
            figure = sample_figure(rng, name == "child", framing)
        moves = make_motion(motion, np.random.default_rng([seed, 53, index]))
        people.append(_keypoints(moves, figure, frames, np.random.default_rng([seed, 55, index])))
    return np.stack(people, axis=1)


def _keypoints(
    motion: Motion, figure: Figure, frames: range, rng: np.random.Generator
) -> Float[np.ndarray, "f 17 3"]:
    tempo, phase = rng.uniform(0.05, 0.13), rng.uniform(0, 4)
    missing = rng.choice(17, size=rng.integers(1, 5), replace=False) if rng.random() < MISSING else []
    face_from_behind = rng.random() < 0.3
    rows = []
    for frame in frames:
        stance: Stance = motion(phase + tempo * frame)
        points = joint_positions(stance, figure)
        confidence = ((points > -0.01) & (points < 1.01)).all(axis=1).astype(float)
        confidence[missing] = 0.0
        if not sees_face(stance, figure) and not face_from_behind:
            confidence[FACE] = 0.0
        rows.append(np.concatenate([points, confidence[:, None]], axis=1))
    return np.stack(rows)
