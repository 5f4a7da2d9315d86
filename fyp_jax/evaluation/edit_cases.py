"""Edits of clips of the synthetic world: drawn clips to edit, and how near an edit comes to its drawing."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from fyp_jax.evaluation.autoencoder import is_figure
from fyp_jax.evaluation.part_segmenter import segment_parts
from fyp_jax.evaluation.scene_metrics import (
    FIGURE_MARGIN,
    People,
    drawn_parts,
    grow,
    nearest_character,
    pose_scores,
)
from fyp_jax.evaluation.scene_set import Kind, make_scene_cases
from fyp_jax.evaluation.statistics import psnr
from fyp_jax.media.images import Frames
from fyp_jax.synthetic.looks import NAMED
from fyp_jax.synthetic.scenes import Scene, caption, render_frames
from fyp_jax.synthetic.styles import STYLES

Masks = Bool[np.ndarray, "f h w"]
CHARACTERS = tuple(NAMED)
STYLE_NAMES = tuple(name for name in STYLES if name != "none")


class SwapScores(NamedTuple):
    """How well an edit has put another character into a clip."""

    character: float
    """1 where the clip looks most like the new character, else 0."""
    background_psnr: float
    """PSNR in dB against the source clip, where neither of the two characters is."""
    background_psnr_vae: float
    """The same against the source clip as the VAE decodes it, which is the best that an edit can do."""
    pose_accuracy: float
    """Fraction of points along the limbs of the source's skeletons at which the clip shows a figure."""


class EditCase(NamedTuple):
    """A drawn clip, and what an edit makes of it."""

    scene: Scene
    """The scene of the clip."""
    target: Scene
    """The scene of the edit."""
    keypoints: People
    pose_images: Frames
    """Skeletons, RGB on black."""
    clip: Frames
    drawing: Frames
    """The edit as it should be."""
    background: Masks
    """Where no figure is, neither in the clip nor in the edit's drawing, nor near."""

    @property
    def captions(self) -> tuple[str, str]:
        return caption(self.scene), caption(self.target)

    @property
    def characters(self) -> tuple[str, str]:
        """The names of the characters of clip and edit, as captions have them."""
        return self.scene.characters[0], self.target.characters[0]

    def swap_scores(self, video: Frames, decoded: Frames) -> SwapScores:
        """Scores of an edit; `decoded` is the clip as the VAE decodes it."""
        clip, vae = (np.square(video.astype(float) - x)[self.background] for x in (self.clip, decoded))
        drawn = drawn_parts(self.target, self.keypoints, video.shape[1])
        nearest = nearest_character(video, self.keypoints, self.target, drawn)
        return SwapScores(
            character=float(nearest == self.characters[1]),
            background_psnr=psnr(clip),
            background_psnr_vae=psnr(vae),
            pose_accuracy=pose_scores(segment_parts(video), self.keypoints, drawn).accuracy,
        )

    def style_score(self, video: Frames) -> float:
        """0 for the clip itself, 1 for the drawing in the style of the edit, 1/2 for as near to both."""
        from_clip, from_drawing = (np.abs(video.astype(float) - x).mean() for x in (self.clip, self.drawing))
        return float(from_clip / max(from_clip + from_drawing, 1e-9))


def swap_cases(count: int, frames: int, size: int) -> list[EditCase]:
    """Clips, each with the next character of the world in the place of its own."""

    def other(scene: Scene, _: int) -> Scene:
        number = CHARACTERS.index(scene.characters[0])
        return scene._replace(characters=(CHARACTERS[(number + 1) % len(CHARACTERS)],))

    return _cases(count, frames, size, other)


def style_cases(count: int, frames: int, size: int) -> list[EditCase]:
    """Clips without a style, each to be edited into one; styles take turns."""
    return _cases(
        count, frames, size, lambda scene, i: scene._replace(style=STYLE_NAMES[i % len(STYLE_NAMES)])
    )


def _cases(count: int, frames: int, size: int, edit: Callable[[Scene, int], Scene]) -> list[EditCase]:
    cases = []
    for i, case in enumerate(make_scene_cases(count, frames, Kind.NAMED, size)):
        scene = case.scene._replace(style="none")
        target = edit(scene, i)
        (clip, before), (drawing, after) = (_draw(x, case.keypoints, size) for x in (scene, target))
        background = ~grow(before | after, FIGURE_MARGIN)
        cases.append(EditCase(scene, target, case.keypoints, case.pose_images, clip, drawing, background))
    return cases


def _draw(scene: Scene, keypoints: People, size: int) -> tuple[Frames, Masks]:
    """The frames of a scene, and where its figure is."""
    frames, _, labels = render_frames(scene, keypoints, size, labels=True)
    assert labels is not None
    return frames, is_figure(labels)
