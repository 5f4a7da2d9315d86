"""Scenes of the synthetic world, rendered to clips with keypoints and a caption.

With this world the full method can be trained and evaluated on a laptop. A `Scene` determines every pixel of
its clip. One in eight pairs of character and background, and one motion, are held out of all training
(`HELD_OUT_PAIRS`, `motions.HELD_OUT_MOTION`).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from fyp_jax.synthetic.backgrounds import BACKGROUNDS, paint_background
from fyp_jax.synthetic.characters import (
    CHARACTERS,
    NAMES_WITHOUT_ARTICLE,
    figure_mask,
    paint_figure,
    scale_keypoints,
)
from fyp_jax.synthetic.kinematics import Body
from fyp_jax.synthetic.motions import TRAIN_MOTIONS, motion_keypoints
from fyp_jax.synthetic.styles import STYLES, apply_style

SIDE = 64
"""Height and width of a frame, in pixels."""
FPS = 8
SUPERSAMPLING = 4
"""Factor by which frames are painted larger and then reduced, so that edges are smooth."""

PAIRS = tuple((character, background) for character in CHARACTERS for background in BACKGROUNDS)
HELD_OUT_PAIRS = tuple(
    pair
    for pair in PAIRS
    if (3 * list(CHARACTERS).index(pair[0]) + list(BACKGROUNDS).index(pair[1])) % 8 == 5
)
TRAIN_PAIRS = tuple(pair for pair in PAIRS if pair not in HELD_OUT_PAIRS)


class Scene(NamedTuple):
    """All that a clip depends on. The seed determines body, position, tempo and the background's details."""

    character: str
    background: str
    style: str
    motion: str
    seed: int


class SyntheticClip(NamedTuple):
    """A rendered scene."""

    video: UInt8[np.ndarray, "f 64 64 3"]
    keypoints: Float[np.ndarray, "f 17 3"]
    """COCO joints, x and y in pixels, confidence 1."""
    caption: str


def caption(scene: Scene, comma: bool = True) -> str:
    """The scene's caption in the words of the paper's teaser, e.g. "A man, in the park, Van Gogh style".

    `comma` is whether a comma follows the character's name.
    """
    name = scene.character
    if name in NAMES_WITHOUT_ARTICLE:
        subject = name.capitalize()
    else:
        subject = f"{'An' if name[0] in 'aeiou' else 'A'} {name}"
    background, style = BACKGROUNDS[scene.background][0], STYLES[scene.style][0]
    comma = comma or scene.background == "simple"
    return f"{subject}{',' if comma else ''} {background}" + (f", {style}" if style else "")


def render_clip(scene: Scene, num_frames: int) -> SyntheticClip:
    """Render the first frames of a scene, at 8 frames per second."""
    rng = np.random.default_rng([scene.seed, 5])
    keypoints = motion_keypoints(scene.motion, Body.sample(rng), num_frames, scene.seed, SIDE)
    video = render_frames(scene, keypoints)
    return SyntheticClip(video, keypoints, caption(scene, comma=bool(rng.random() < 0.7)))


def render_frames(scene: Scene, keypoints: Float[np.ndarray, "f 17 3"]) -> UInt8[np.ndarray, "f 64 64 3"]:
    """Render a scene with given keypoints (pixels of a 64 x 64 image), whatever the scene's motion is."""
    background = paint_background(scene.background, SIDE * SUPERSAMPLING, scene.seed)
    frames = []
    for joints in keypoints:
        image, mask = background.copy(), Image.new("L", background.size)
        paint_figure(scale_keypoints(joints, SUPERSAMPLING), CHARACTERS[scene.character], image, mask)
        frames.append(_styled(image, scene.style))
    return np.stack(frames)


def render_background(background: str, style: str, seed: int) -> UInt8[np.ndarray, "64 64 3"]:
    """Render a background in a style, without a character."""
    return _styled(paint_background(background, SIDE * SUPERSAMPLING, seed), style)


def _styled(image: Image.Image, style: str) -> UInt8[np.ndarray, "64 64 3"]:
    """Reduce a supersampled image to a frame and apply a style."""
    frame = np.asarray(image.reduce(SUPERSAMPLING), np.float64) / 255
    return np.round(255 * apply_style(style, frame)).astype(np.uint8)


def figure_masks(scene: Scene, keypoints: Float[np.ndarray, "f 17 3"]) -> Bool[np.ndarray, "f 64 64"]:
    """For each frame the mask of the pixels that the character covers, given its keypoints."""
    return np.stack(
        [figure_mask(joints, CHARACTERS[scene.character], SIDE, SUPERSAMPLING) for joints in keypoints]
    )


def training_scene(seed: int) -> Scene:
    """Sample a scene for training: pairs and motions are uniform, and three in five scenes have a style."""
    rng = np.random.default_rng([seed, 3])
    character, background = TRAIN_PAIRS[rng.integers(len(TRAIN_PAIRS))]
    style = "none" if rng.random() < 0.4 else list(STYLES)[1 + rng.integers(len(STYLES) - 1)]
    return Scene(character, background, style, TRAIN_MOTIONS[rng.integers(len(TRAIN_MOTIONS))], seed)
