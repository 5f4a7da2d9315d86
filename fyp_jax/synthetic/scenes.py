"""Clips of the mini world: who, where, in which style, moving how -> frames, poses and a caption.

A world that we draw ourselves, so that the whole method can be trained and measured on a laptop. Everything
follows from a `Scene`. One in eight pairs of character and background, and one motion, are held out of all
training (`HELD_OUT_PAIRS`, `motions.HELD_OUT_MOTION`).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from fyp_jax.synthetic.backgrounds import BACKGROUNDS, draw_background
from fyp_jax.synthetic.characters import (
    CHARACTERS,
    NAMES_WITHOUT_ARTICLE,
    draw_figure,
    figure_mask,
    scaled,
)
from fyp_jax.synthetic.motions import TRAINED_MOTIONS, Body, keypoints
from fyp_jax.synthetic.styles import STYLES, apply_style

SIDE = 64
"""Pixels, height and width."""
FPS = 8
DRAWN = 4
"""Pictures are drawn this many times as large and reduced, so that edges are smooth."""

PAIRS = tuple((character, background) for character in CHARACTERS for background in BACKGROUNDS)
HELD_OUT_PAIRS = tuple(
    pair
    for pair in PAIRS
    if (3 * list(CHARACTERS).index(pair[0]) + list(BACKGROUNDS).index(pair[1])) % 8 == 5
)
TRAINED_PAIRS = tuple(pair for pair in PAIRS if pair not in HELD_OUT_PAIRS)


class Scene(NamedTuple):
    """All that a clip depends on. The seed chooses body, place, tempo and the background's details."""

    character: str
    background: str
    style: str
    motion: str
    seed: int


class SyntheticClip(NamedTuple):
    """A drawn scene."""

    video: UInt8[np.ndarray, "f 64 64 3"]
    keypoints: Float[np.ndarray, "f 17 3"]
    """COCO joints, x and y in pixels, confidence 1."""
    caption: str


def caption(scene: Scene, comma: bool = True) -> str:
    """As the paper's teaser words it: "A man in the park, Van Gogh style", or with a comma before "in"."""
    name = scene.character
    who = (
        name.capitalize()
        if name in NAMES_WITHOUT_ARTICLE
        else f"{'An' if name[0] in 'aeiou' else 'A'} {name}"
    )
    where, how = BACKGROUNDS[scene.background][0], STYLES[scene.style][0]
    comma = comma or scene.background == "simple"
    return f"{who}{',' if comma else ''} {where}" + (f", {how}" if how else "")


def render_clip(scene: Scene, frames: int) -> SyntheticClip:
    """Frames of a scene, eight to a second."""
    rng = np.random.default_rng([scene.seed, 5])
    points = keypoints(scene.motion, Body.draw(rng), frames, scene.seed, SIDE)
    return SyntheticClip(draw_frames(scene, points), points, caption(scene, comma=bool(rng.random() < 0.7)))


def draw_frames(scene: Scene, points: Float[np.ndarray, "f 17 3"]) -> UInt8[np.ndarray, "f 64 64 3"]:
    """The scene with these joints (pixels of a 64 x 64 picture) instead of its own motion's."""
    place = draw_background(scene.background, SIDE * DRAWN, scene.seed)
    pictures = []
    for joints in points:
        image, mask = place.copy(), Image.new("L", place.size)
        draw_figure(scaled(joints, DRAWN), CHARACTERS[scene.character], image, mask)
        small = np.asarray(image.reduce(DRAWN), np.float64) / 255
        pictures.append(np.round(255 * apply_style(scene.style, small)).astype(np.uint8))
    return np.stack(pictures)


def render_background(background: str, style: str, seed: int) -> UInt8[np.ndarray, "64 64 3"]:
    """A scene without anybody in it."""
    place = draw_background(background, SIDE * DRAWN, seed).reduce(DRAWN)
    return np.round(255 * apply_style(style, np.asarray(place, np.float64) / 255)).astype(np.uint8)


def masks(scene: Scene, points: Float[np.ndarray, "f 17 3"]) -> Bool[np.ndarray, "f 64 64"]:
    """Where the figure is drawn."""
    return np.stack([figure_mask(joints, CHARACTERS[scene.character], SIDE, DRAWN) for joints in points])


def training_scene(seed: int) -> Scene:
    """A scene that training may see; pairs and motions as often as each other, three in five with a style."""
    rng = np.random.default_rng([seed, 3])
    character, background = TRAINED_PAIRS[rng.integers(len(TRAINED_PAIRS))]
    style = "none" if rng.random() < 0.4 else list(STYLES)[1 + rng.integers(len(STYLES) - 1)]
    return Scene(character, background, style, TRAINED_MOTIONS[rng.integers(len(TRAINED_MOTIONS))], seed)
