"""Edits of clips of the synthetic world: drawn clips to edit, and how near an edit comes to its drawing.

Clips of 64 pixels are of the world's first edition, with the scores of `synthetic_metrics`. All others are of
the second, which has any size; there a clip is compared with drawings of the same keypoints.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool

from fyp_jax.evaluation.autoencoder import is_figure
from fyp_jax.evaluation.eval_set import make_eval_cases
from fyp_jax.evaluation.statistics import psnr
from fyp_jax.evaluation.synthetic_metrics import FIGURE_MARGIN, limb_points, pose_scores, text_scores
from fyp_jax.media.images import Frames
from fyp_jax.pose.skeleton import draw_skeleton
from fyp_jax.synthetic import scenes as first
from fyp_jax.synthetic.characters import CHARACTERS
from fyp_jax.synthetic.second import scenes as second
from fyp_jax.synthetic.second.looks import NAMED
from fyp_jax.synthetic.second.motions import HELD_OUT_MOTION
from fyp_jax.synthetic.styles import STYLES

Masks = Bool[np.ndarray, "f h w"]
STYLE_NAMES = tuple(name for name in STYLES if name != "none")
"""Both editions have the same styles, with the same words."""


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


@runtime_checkable
class World(Protocol):
    """An edition of the synthetic world, for clips of one size. A scene and its keypoints are its own."""

    @property
    def characters(self) -> Sequence[str]:
        """The names that the world may give a figure."""
        ...

    def scenes(self, count: int, frames: int) -> list[tuple[Any, np.ndarray]]:
        """Scenes that no training data has, without a style, and their keypoints."""
        ...

    def changed(self, scene: Any, character: str | None = None, style: str | None = None) -> Any:
        """The scene with another character or in another style."""
        ...

    def character(self, scene: Any) -> str: ...
    def caption(self, scene: Any) -> str: ...
    def draw(self, scene: Any, keypoints: np.ndarray) -> tuple[Frames, Masks]:
        """The frames of a scene, and where its figure is."""
        ...

    def skeletons(self, keypoints: np.ndarray) -> Frames: ...
    def shows_character(self, video: Frames, scene: Any, keypoints: np.ndarray) -> bool: ...
    def pose_accuracy(self, video: Frames, scene: Any, keypoints: np.ndarray) -> float: ...


class FirstEdition:
    """Clips of 64 pixels."""

    characters = tuple(CHARACTERS)

    def scenes(self, count: int, frames: int) -> list[tuple[Any, np.ndarray]]:
        cases = make_eval_cases(count, frames, held_out_pairs=False)
        return [(case.scene._replace(style="none"), case.keypoints) for case in cases]

    def changed(
        self, scene: first.Scene, character: str | None = None, style: str | None = None
    ) -> first.Scene:
        return scene._replace(character=character or scene.character, style=style or scene.style)

    def character(self, scene: first.Scene) -> str:
        return scene.character

    def caption(self, scene: first.Scene) -> str:
        return first.caption(scene)

    def draw(self, scene: first.Scene, keypoints: np.ndarray) -> tuple[Frames, Masks]:
        return first.render_frames(scene, keypoints), first.figure_masks(scene, keypoints)

    def skeletons(self, keypoints: np.ndarray) -> Frames:
        return np.stack([draw_skeleton(joints[None], first.SIDE, first.SIDE) for joints in keypoints])

    def shows_character(self, video: Frames, scene: first.Scene, keypoints: np.ndarray) -> bool:
        return bool(text_scores(video, keypoints, scene).character)

    def pose_accuracy(self, video: Frames, scene: first.Scene, keypoints: np.ndarray) -> float:
        return pose_scores(video, keypoints, scene).accuracy


class SecondEdition:
    """Clips of any size that the second edition renders, with one named character each."""

    characters = tuple(NAMED)

    def __init__(self, size: int):
        self.size = size

    def scenes(self, count: int, frames: int) -> list[tuple[Any, np.ndarray]]:
        order = np.random.default_rng(0).permutation(len(first.TRAIN_PAIRS))
        found = []
        for i in range(count):
            character, place = first.TRAIN_PAIRS[order[i % len(order)]]
            seed = second.FIRST_HELD_OUT_SEED + i
            scene = second.Scene((character,), place, "none", HELD_OUT_MOTION, seed)
            found.append((scene, second.scene_keypoints(scene, range(frames), self.size)))
        return found

    def changed(
        self, scene: second.Scene, character: str | None = None, style: str | None = None
    ) -> second.Scene:
        characters = scene.characters if character is None else (character,)
        return scene._replace(characters=characters, style=style or scene.style)

    def character(self, scene: second.Scene) -> str:
        return scene.characters[0]

    def caption(self, scene: second.Scene) -> str:
        return second.caption(scene)

    def draw(self, scene: second.Scene, keypoints: np.ndarray) -> tuple[Frames, Masks]:
        frames, _, labels = second.render_frames(scene, keypoints, self.size, labels=True)
        assert labels is not None
        return frames, is_figure(labels)

    def skeletons(self, keypoints: np.ndarray) -> Frames:
        return np.stack([draw_skeleton(people, self.size, self.size) for people in keypoints])

    def shows_character(self, video: Frames, scene: second.Scene, keypoints: np.ndarray) -> bool:
        """Whether the nearest character is that of the scene, over the pixels that all of them cover."""
        drawings = {name: self.draw(self.changed(scene, name), keypoints) for name in self.characters}
        body = np.logical_and.reduce([mask for _, mask in drawings.values()])

        def distance(name: str) -> float:
            return float(_difference(video, drawings[name][0])[body].mean())

        return min(drawings, key=distance) == self.character(scene)

    def pose_accuracy(self, video: Frames, scene: second.Scene, keypoints: np.ndarray) -> float:
        """Fraction of limb points where most of 3 x 3 pixels are nearer to a character than to the place."""
        drawings = (self.draw(self.changed(scene, name), keypoints)[0] for name in self.characters)
        place, _ = self.draw(scene._replace(characters=()), keypoints[:, :0])
        nearest = np.min([_difference(video, x) for x in drawings], axis=0)
        figure = nearest < _difference(video, place)
        padded = np.pad(figure, ((0, 0), (1, 1), (1, 1)), mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
        most = windows.mean(axis=(-1, -2)) > 0.5
        hits = []
        for mask, people in zip(most, keypoints, strict=True):
            x, y = np.floor(limb_points(people[0])).astype(int).T
            seen = (x >= 0) & (y >= 0) & (x < self.size) & (y < self.size)
            hits.append(mask[y[seen], x[seen]])
        return float(np.concatenate(hits).mean())


def world_of(size: int) -> World:
    """The edition whose clips have this many pixels a side."""
    return FirstEdition() if size == first.SIDE else SecondEdition(size)


class EditCase(NamedTuple):
    """A drawn clip, and what an edit makes of it."""

    world: World
    scene: Any
    """The scene of the clip."""
    target: Any
    """The scene of the edit."""
    keypoints: np.ndarray
    clip: Frames
    drawing: Frames
    """The edit as it should be."""
    background: Masks
    """Where no figure is, neither in the clip nor in the edit's drawing, nor near."""

    @property
    def captions(self) -> tuple[str, str]:
        return self.world.caption(self.scene), self.world.caption(self.target)

    @property
    def characters(self) -> tuple[str, str]:
        """The names of the characters of clip and edit, as captions have them."""
        return self.world.character(self.scene), self.world.character(self.target)

    @property
    def pose_images(self) -> Frames:
        return self.world.skeletons(self.keypoints)

    def swap_scores(self, video: Frames, decoded: Frames) -> SwapScores:
        """Scores of an edit; `decoded` is the clip as the VAE decodes it."""
        clip, vae = (np.square(video.astype(float) - x)[self.background] for x in (self.clip, decoded))
        return SwapScores(
            character=float(self.world.shows_character(video, self.target, self.keypoints)),
            background_psnr=psnr(clip),
            background_psnr_vae=psnr(vae),
            pose_accuracy=self.world.pose_accuracy(video, self.target, self.keypoints),
        )

    def style_score(self, video: Frames) -> float:
        """0 for the clip itself, 1 for the drawing in the style of the edit, 1/2 for as near to both."""
        from_clip, from_drawing = (_difference(video, x).mean() for x in (self.clip, self.drawing))
        return float(from_clip / max(from_clip + from_drawing, 1e-9))


def swap_cases(count: int, frames: int, size: int) -> list[EditCase]:
    """Clips, each with the next character of the world in the place of its own."""
    world, cases = world_of(size), []
    for scene, keypoints in world.scenes(count, frames):
        number = world.characters.index(world.character(scene))
        target = world.changed(scene, character=world.characters[(number + 1) % len(world.characters)])
        cases.append(_case(world, scene, target, keypoints))
    return cases


def style_cases(count: int, frames: int, size: int) -> list[EditCase]:
    """Clips without a style, each to be edited into one; styles take turns."""
    world = world_of(size)
    return [
        _case(world, scene, world.changed(scene, style=STYLE_NAMES[i % len(STYLE_NAMES)]), keypoints)
        for i, (scene, keypoints) in enumerate(world.scenes(count, frames))
    ]


def _case(world: World, scene: Any, target: Any, keypoints: np.ndarray) -> EditCase:
    (clip, before), (drawing, after) = (world.draw(x, keypoints) for x in (scene, target))
    padding = (0, 0), (FIGURE_MARGIN, FIGURE_MARGIN), (FIGURE_MARGIN, FIGURE_MARGIN)
    side = 2 * FIGURE_MARGIN + 1
    windows = np.lib.stride_tricks.sliding_window_view(
        np.pad(before | after, padding), (side, side), axis=(1, 2)
    )
    return EditCase(world, scene, target, keypoints, clip, drawing, ~windows.max(axis=(-1, -2)))


def _difference(video: Frames, other: Frames) -> np.ndarray:
    return np.abs(video.astype(np.float32) - other).mean(axis=-1)
