"""Scores of clips of the synthetic world: pose accuracy, text alignment, temporal consistency.

A clip is compared with renderings of the same keypoints, so no model has to be trained for the scores. Clips
are uint8 [f h w 3], keypoints [f 17 3] in pixels.
"""

import functools
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from fyp_jax.evaluation.keypoint_metrics import Keypoints
from fyp_jax.media.images import Frames
from fyp_jax.pose.skeleton import JOINTS
from fyp_jax.synthetic.backgrounds import BACKGROUNDS
from fyp_jax.synthetic.characters import CHARACTERS
from fyp_jax.synthetic.kinematics import Body
from fyp_jax.synthetic.motions import motion_keypoints
from fyp_jax.synthetic.scenes import Scene, figure_masks, render_background, render_frames
from fyp_jax.synthetic.styles import STYLES

LIMBS = tuple(
    (f"{side}_{a}", f"{side}_{b}")
    for side in ("left", "right")
    for a, b in (
        ("shoulder", "elbow"), ("elbow", "wrist"), ("hip", "knee"), ("knee", "ankle"), ("shoulder", "hip"),
    )
)  # fmt: skip
BACKGROUND_SEEDS = 8
"""Number of renderings of a background that a frame is compared with; the seed moves its details a little."""
FIGURE_COLOURS = 16
"""Number of a figure's colours that are compared, the most frequent first."""
FIGURE_MARGIN = 4
"""Pixels around a figure that are not counted as background: the Minecraft style may give them its colour."""


class PoseScores(NamedTuple):
    """How well a clip follows a pose, 0 to 1."""

    accuracy: float
    """Fraction of the points along the limbs of the given skeleton at which the clip shows the figure."""
    iou: float
    """Intersection over union of the clip's figure and the rendered figure of the pose."""


class TextScores(NamedTuple):
    """Whether a clip looks most like the character, background and style of its prompt, one by one."""

    character: bool
    background: bool
    style: bool


class TemporalConsistency(NamedTuple):
    """Changes from each frame to the next, as means over a clip, in grey levels of 255."""

    flicker: float
    """Mean absolute difference of background pixels."""
    drift: float
    """Euclidean distance of the figure's mean colours."""


def limb_points(joints: Float[np.ndarray, "17 3"], spacing: float = 1.0) -> Float[np.ndarray, "n 2"]:
    """Points on arms, legs and the sides of the trunk, about `spacing` pixels apart: x and y."""
    points = dict(zip(JOINTS, np.asarray(joints)[:, :2], strict=True))
    lines = []
    for a, b in LIMBS:
        count = max(2, int(np.ceil(np.linalg.norm(points[b] - points[a]) / spacing)) + 1)
        weight = np.linspace(0, 1, count)[:, None]
        lines.append((1 - weight) * points[a] + weight * points[b])
    return np.concatenate(lines)


def figure_pixels(video: Frames, scene: Scene) -> Bool[np.ndarray, "f h w"]:
    """Mask of the pixels that are nearer to a colour of the scene's character than to the background there.

    Both come from renderings in the scene's style: the character's colours at any position, the background's
    at the pixel and the eight around it, with several seeds. A majority filter over 3 x 3 pixels follows. The
    mask does not depend on where the figure should be.
    """
    figure = _figure_colours(scene.character, scene.background, scene.style)
    background = _background_colours(scene.background, scene.style)
    mask = np.empty(video.shape[:3], bool)
    for index, frame in enumerate(video.astype(np.float32)):
        to_figure = np.min([np.abs(frame - colour).sum(axis=-1) for colour in figure], axis=0)
        to_background = np.min(np.abs(frame - background).sum(axis=-1), axis=0)
        mask[index] = _windows(to_figure < to_background, 1, "edge").mean(axis=(-1, -2)) > 0.5
    return mask


def pose_scores(video: Frames, keypoints: Keypoints, scene: Scene) -> PoseScores:
    """How well a clip of `scene` follows these keypoints. Points outside of the frame do not count."""
    pred, target = figure_pixels(video, scene), figure_masks(scene, keypoints)
    hits = []
    for frame, joints in enumerate(keypoints):
        x, y = np.floor(limb_points(joints)).astype(int).T
        visible = (x >= 0) & (y >= 0) & (x < video.shape[2]) & (y < video.shape[1])
        hits.append(pred[frame, y[visible], x[visible]])
    union = (pred | target).sum()
    return PoseScores(float(np.concatenate(hits).mean()), float((pred & target).sum() / max(union, 1)))


def text_scores(video: Frames, keypoints: Keypoints, scene: Scene) -> TextScores:
    """Whether the nearest character, background and style of the synthetic world are those of the scene.

    The distance is the mean absolute difference from renderings of the same keypoints: for characters over
    the pixels that every character covers, for backgrounds over those that none covers, for styles over all.
    """
    bodies = [figure_masks(scene._replace(character=name), keypoints) for name in CHARACTERS]
    body, uncovered = np.logical_and.reduce(bodies), ~np.logical_or.reduce(bodies)

    def character_distance(name: str) -> float:
        rendering = render_frames(scene._replace(character=name), keypoints)
        return float(_difference(video, rendering)[body].mean())

    def background_distance(name: str) -> float:
        renderings = [render_background(name, scene.style, seed) for seed in range(BACKGROUND_SEEDS)]
        return min(float(_difference(video, x[None])[uncovered].mean()) for x in renderings)

    def style_distance(name: str) -> float:
        scenes = [scene._replace(style=name, seed=seed) for seed in range(BACKGROUND_SEEDS)]
        return min(float(_difference(video, render_frames(x, keypoints)).mean()) for x in scenes)

    return TextScores(
        min(CHARACTERS, key=character_distance) == scene.character,
        min(BACKGROUNDS, key=background_distance) == scene.background,
        min(STYLES, key=style_distance) == scene.style,
    )


def temporal_consistency(video: Frames, keypoints: Keypoints, scene: Scene) -> TemporalConsistency:
    """How little a clip of `scene` changes; the keypoints say where its figure and its background are."""
    figure = figure_masks(scene, keypoints)
    background = ~np.stack([_dilate(mask, FIGURE_MARGIN) for mask in figure])
    frames = video.astype(np.float32)
    flicker, colours = [], []
    for i in range(len(frames)):
        colours.append(frames[i][figure[i]].mean(axis=0))
        if i:
            both = background[i] & background[i - 1]
            flicker.append(np.abs(frames[i] - frames[i - 1])[both].mean())
    drift = np.linalg.norm(np.diff(colours, axis=0), axis=-1)
    return TemporalConsistency(float(np.mean(flicker)), float(np.mean(drift)))


def _difference(video: Frames, other: UInt8[np.ndarray, "_ h w 3"]) -> Float[np.ndarray, "f h w"]:
    return np.abs(video.astype(np.float32) - other.astype(np.float32)).mean(axis=-1)


def _dilate(mask: Bool[np.ndarray, "h w"], pixels: int) -> Bool[np.ndarray, "h w"]:
    """The mask with all pixels that are at most so many pixels away from it, in x and in y."""
    return _windows(mask, pixels, "constant").max(axis=(-1, -2))


def _windows(
    mask: Bool[np.ndarray, "h w"], pixels: int, mode: Literal["edge", "constant"]
) -> Bool[np.ndarray, "h w n n"]:
    """The square of 2 * pixels + 1 a side around each pixel; `mode` is np.pad's, for the mask's edges."""
    padded = np.pad(mask, pixels, mode=mode)
    return np.lib.stride_tricks.sliding_window_view(padded, (2 * pixels + 1,) * 2)


@functools.cache
def _figure_colours(character: str, background: str, style: str) -> np.ndarray:
    """Colours inside of a character that stands at three positions, float32 [n 1 1 3]."""
    scene = Scene(character, background, style, "star", 0)
    keypoints = np.concatenate(
        [motion_keypoints("star", Body(0.8, x, 0.94), 4, seed=0, side=64) for x in (0.35, 0.5, 0.65)]
    )
    inside = np.stack([~_dilate(~mask, 1) for mask in figure_masks(scene, keypoints)])
    colours, counts = np.unique(
        render_frames(scene, keypoints)[inside] // 12 * 12 + 6, axis=0, return_counts=True
    )
    frequent = np.argsort(-counts)[:FIGURE_COLOURS]
    return colours[frequent].astype(np.float32)[:, None, None]


@functools.cache
def _background_colours(background: str, style: str) -> np.ndarray:
    """Colours that a background may have at each pixel, float32 [n h w 3]: its own, and those of the pixels
    around it."""
    renderings = [render_background(background, style, seed) for seed in range(BACKGROUND_SEEDS)]
    shifts = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    shifted = [np.roll(x, shift, axis=(0, 1)) for x in renderings for shift in shifts]
    return np.stack(shifted).astype(np.float32)
