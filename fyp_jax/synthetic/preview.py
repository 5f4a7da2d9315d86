"""An overview of the synthetic world as one picture."""

import numpy as np
from jaxtyping import UInt8

from fyp_jax.synthetic.looks import NAMED
from fyp_jax.synthetic.motions import TRAIN_MOTIONS
from fyp_jax.synthetic.places import PLACES
from fyp_jax.synthetic.scenes import Scene, render_clip
from fyp_jax.synthetic.styles import STYLES

COLUMNS = 12
GAP = 8
"""Pixels of white between the parts."""


def render_preview(size: int) -> UInt8[np.ndarray, "h w 3"]:
    """Four parts, one below the other, each of rows of twelve frames.

    A row for each place, with all named and three open characters; "a person on the street" with the seeds 0
    to 11; pans and things that move by themselves, frame by frame; two and three people.
    """
    characters = [*NAMED, "person", "child", "woman"]
    table = []
    for i, place in enumerate(PLACES):
        for j, character in enumerate(characters):
            style = list(STYLES)[1 + (i + j) % 3] if (i + 2 * j) % 7 == 3 else "none"
            motion = TRAIN_MOTIONS[(3 * i + j) % len(TRAIN_MOTIONS)]
            table.append(Scene((character,), place, style, motion, 100 * i + j))
    people = [Scene(("person",), "street", "none", "routine", seed) for seed in range(COLUMNS)]
    groups = [
        ("person", "person"), ("batman", "robot"), ("dancer", "dancer"), ("panda", "child"), ("child",) * 3,
        ("hulk", "woman"), ("woman", "woman"), ("iron man", "superman"), ("dancer",) * 3,
        ("astronaut", "stormtrooper"), ("child", "child"), ("man", "woman"),
    ]  # fmt: skip
    several = [
        Scene(names, list(PLACES)[i % len(PLACES)], "none", "routine", 500 + i)
        for i, names in enumerate(groups)
    ]
    clips = [
        Scene(("person",), "street", "none", "walk", 6, pan=2 / 128),
        Scene(("robot",), "snow", "none", "sway", 3, pan=0.0),
    ]
    parts = [_rows([render_clip(scene, 1, size).video[0] for scene in scenes]) for scenes in (table, people)]
    moving = [render_clip(scene, COLUMNS, size, stride=2).video for scene in clips]
    parts.append(_rows([frame for video in moving for frame in video]))
    parts.append(_rows([render_clip(scene, 1, size).video[0] for scene in several]))
    gap = np.full((GAP, parts[0].shape[1], 3), 255, np.uint8)
    return np.concatenate([piece for part in parts for piece in (part, gap)][:-1])


def _rows(frames: list[np.ndarray]) -> np.ndarray:
    rows = [np.concatenate(frames[i : i + COLUMNS], axis=1) for i in range(0, len(frames), COLUMNS)]
    return np.concatenate(rows)
