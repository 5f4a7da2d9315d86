"""How well clips follow poses and prompts of the synthetic world, and how steady they are.

The look of that world is known, so a clip is compared with the world's own rendering of the same joints: no
judge has to be trained. Clips are uint8 [f h w 3], keypoints [f 17 3] in pixels.
"""

import functools
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from fyp_jax.evaluation.keypoint_metrics import Keypoints
from fyp_jax.pose.skeleton import JOINTS
from fyp_jax.synthetic import motions
from fyp_jax.synthetic.backgrounds import BACKGROUNDS
from fyp_jax.synthetic.characters import CHARACTERS
from fyp_jax.synthetic.scenes import Scene, figure_masks, render_background, render_frames
from fyp_jax.synthetic.styles import STYLES

Frames = UInt8[np.ndarray, "f h w 3"]

LIMBS = tuple(
    (f"{side}_{a}", f"{side}_{b}")
    for side in ("left", "right")
    for a, b in (
        ("shoulder", "elbow"), ("elbow", "wrist"), ("hip", "knee"), ("knee", "ankle"), ("shoulder", "hip"),
    )
)  # fmt: skip
PLACES = 8
"""Seeds of a background that a picture is compared with: what stands in it moves a little with the seed."""
COLOURS = 16
"""Of a figure's colours, how many are looked at, the most frequent first."""
AROUND = 4
"""Pixels around a figure that are not background for sure: it may colour a block of the Minecraft style."""


class PoseScores(NamedTuple):
    """Of one clip."""

    accuracy: float
    """Of the points along the limbs of the given skeleton, the share where the figure is drawn."""
    iou: float
    """Overlap of the drawn figure and the world's own drawing of the pose: intersection over union."""


class TextScores(NamedTuple):
    """Whether a clip looks most like what its prompt says; each with the other two as in the prompt."""

    character: bool
    background: bool
    style: bool


class TemporalConsistency(NamedTuple):
    """Changes from each frame to the next, mean over a clip."""

    flicker: float
    """Of background pixels: mean absolute difference, in grey levels of 255."""
    drift: float
    """Of the figure's mean colour: distance in grey levels of 255."""


def limb_points(joints: Float[np.ndarray, "17 3"], spacing: float = 1.0) -> Float[np.ndarray, "n 2"]:
    """Points on arms, legs and the sides of the trunk, about `spacing` pixels apart: x and y."""
    places = dict(zip(JOINTS, np.asarray(joints)[:, :2], strict=True))
    lines = []
    for a, b in LIMBS:
        count = max(2, int(np.ceil(np.linalg.norm(places[b] - places[a]) / spacing)) + 1)
        share = np.linspace(0, 1, count)[:, None]
        lines.append((1 - share) * places[a] + share * places[b])
    return np.concatenate(lines)


def figure_pixels(video: Frames, scene: Scene) -> Bool[np.ndarray, "f h w"]:
    """Pixels nearer to a colour of the scene's character than to what the background has there.

    Both are taken from the world's own drawings in the scene's style: the character in any place, the
    background with several seeds and one pixel around; then each pixel goes with most of the nine around it.
    Where the figure should be has no influence.
    """
    figure = _figure_colours(scene.character, scene.background, scene.style)
    ground = _ground_colours(scene.background, scene.style)
    inside = np.empty(video.shape[:3], bool)
    for frame, picture in enumerate(video.astype(np.float32)):
        to_figure = np.min([np.abs(picture - colour).sum(axis=-1) for colour in figure], axis=0)
        to_ground = np.min(np.abs(picture - ground).sum(axis=-1), axis=0)
        inside[frame] = _around(to_figure < to_ground, 1, "edge").mean(axis=(-1, -2)) > 0.5
    return inside


def pose_scores(video: Frames, keypoints: Keypoints, scene: Scene) -> PoseScores:
    """Of a clip that should be `scene` with these joints; points outside of the picture do not count."""
    drawn, wanted = figure_pixels(video, scene), figure_masks(scene, keypoints)
    hits = []
    for frame, joints in enumerate(keypoints):
        x, y = np.floor(limb_points(joints)).astype(int).T
        there = (x >= 0) & (y >= 0) & (x < video.shape[2]) & (y < video.shape[1])
        hits.append(drawn[frame, y[there], x[there]])
    union = (drawn | wanted).sum()
    return PoseScores(float(np.concatenate(hits).mean()), float((drawn & wanted).sum() / max(union, 1)))


def text_scores(video: Frames, keypoints: Keypoints, scene: Scene) -> TextScores:
    """Which character, background and style the clip is nearest to, against those of the scene.

    Nearest by the mean absolute difference from the world's drawings with the same joints: of characters
    where every one of them has its body, of backgrounds where none has, of styles everywhere.
    """
    bodies = [figure_masks(scene._replace(character=name), keypoints) for name in CHARACTERS]
    body, around = np.logical_and.reduce(bodies), ~np.logical_or.reduce(bodies)

    def distance(other: Scene, where: Bool[np.ndarray, "f h w"]) -> float:
        drawings = (render_frames(other._replace(seed=seed), keypoints) for seed in range(PLACES))
        return min(float(_difference(video, drawing)[where].mean()) for drawing in drawings)

    def ground(name: str) -> float:
        places = [render_background(name, scene.style, seed) for seed in range(PLACES)]
        return min(float(_difference(video, place[None])[around].mean()) for place in places)

    def bodies_apart(name: str) -> float:
        drawing = render_frames(scene._replace(character=name), keypoints)
        return float(_difference(video, drawing)[body].mean())

    everywhere = np.ones_like(body)
    return TextScores(
        min(CHARACTERS, key=bodies_apart) == scene.character,
        min(BACKGROUNDS, key=ground) == scene.background,
        min(STYLES, key=lambda name: distance(scene._replace(style=name), everywhere)) == scene.style,
    )


def temporal_consistency(video: Frames, keypoints: Keypoints, scene: Scene) -> TemporalConsistency:
    """Of a clip that should be `scene` with these joints, which say where figure and background are."""
    figure = figure_masks(scene, keypoints)
    ground = ~np.stack([_grown(mask, AROUND) for mask in figure])
    picture = video.astype(np.float32)
    flicker, colours = [], []
    for frame in range(len(video)):
        colours.append(picture[frame][figure[frame]].mean(axis=0))
        if frame:
            both = ground[frame] & ground[frame - 1]
            flicker.append(np.abs(picture[frame] - picture[frame - 1])[both].mean())
    drift = np.linalg.norm(np.diff(colours, axis=0), axis=-1)
    return TemporalConsistency(float(np.mean(flicker)), float(np.mean(drift)))


def _difference(video: Frames, other: UInt8[np.ndarray, "_ h w 3"]) -> Float[np.ndarray, "f h w"]:
    return np.abs(video.astype(np.float32) - other.astype(np.float32)).mean(axis=-1)


def _grown(mask: Bool[np.ndarray, "h w"], pixels: int) -> Bool[np.ndarray, "h w"]:
    """With all pixels that are at most this far away, in x and in y."""
    return _around(mask, pixels, "constant").max(axis=(-1, -2))


def _around(
    mask: Bool[np.ndarray, "h w"], pixels: int, beyond: Literal["edge", "constant"]
) -> Bool[np.ndarray, "h w n n"]:
    """For each pixel the square around it."""
    padded = np.pad(mask, pixels, mode=beyond)
    return np.lib.stride_tricks.sliding_window_view(padded, (2 * pixels + 1,) * 2)


@functools.cache
def _figure_colours(character: str, background: str, style: str) -> np.ndarray:
    """Colours of a figure, float32 [n 1 1 3], from the middle of its body in a standing pose, all over it."""
    scene = Scene(character, background, style, "star", 0)
    points = np.concatenate(
        [
            motions.motion_keypoints("star", motions.Body(0.8, x, 0.94), 4, seed=0, side=64)
            for x in (0.35, 0.5, 0.65)
        ]
    )
    inner = np.stack([~_grown(~mask, 1) for mask in figure_masks(scene, points)])
    colours = np.unique(render_frames(scene, points)[inner] // 12 * 12 + 6, axis=0, return_counts=True)
    often = np.argsort(-colours[1])[:COLOURS]
    return colours[0][often].astype(np.float32)[:, None, None]


@functools.cache
def _ground_colours(background: str, style: str) -> np.ndarray:
    """Colours that a background has at each pixel or one beside it, float32 [n h w 3]."""
    places = [render_background(background, style, seed) for seed in range(PLACES)]
    shifts = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    moved = [np.roll(place, shift, axis=(0, 1)) for place in places for shift in shifts]
    return np.stack(moved).astype(np.float32)
