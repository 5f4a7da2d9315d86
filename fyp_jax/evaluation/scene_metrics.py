"""Scores of clips of the synthetic world: pose, text, and what frames have in common.

Clips are uint8 [f h w 3], keypoints [f p 17 3] in pixels, maps of parts [f h w] as `part_segmenter` numbers
them. Where a figure is comes from the segmenter; where it should be, from renderings of the same keypoints.
"""

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from fyp_jax.evaluation.part_segmenter import part_classes
from fyp_jax.media.images import Frames
from fyp_jax.pose.skeleton import JOINTS
from fyp_jax.synthetic.looks import NAMED
from fyp_jax.synthetic.motions import HELD_OUT_MOTION
from fyp_jax.synthetic.parts import PARTS
from fyp_jax.synthetic.places import OPEN_PLACES, PLACES
from fyp_jax.synthetic.scenes import Scene, pan_velocity, render_frames
from fyp_jax.synthetic.styles import STYLES

People = Float[np.ndarray, "f p 17 3"]
PartMaps = UInt8[np.ndarray, "f h w"]

LIMBS = tuple(
    (f"{side}_{a}", f"{side}_{b}")
    for side in ("left", "right")
    for a, b in (
        ("shoulder", "elbow"), ("elbow", "wrist"), ("hip", "knee"), ("knee", "ankle"), ("shoulder", "hip"),
    )
)  # fmt: skip
COLOURED_PARTS = ("torso", "arms", "forearms", "thighs", "shins", "head")
"""Parts whose colour is compared from frame to frame: every figure has them, and they are seen mostly."""
PLAIN = "robot"
"""A character without cape, skirt, hair and hat: where its parts are, those of any figure are nearly."""
CORE = 1
"""Pixels at the rim of a part that do not count for its colour, as there colours of neighbours are mixed."""
FEWEST_PIXELS = 8
"""A part with fewer pixels in a frame has no colour there."""
FIGURE_MARGIN = 4
"""Pixels around figures that are not counted as background."""
PLACE_SEEDS = 6
"""Renderings of each place that a clip is compared with; the seed says which trees and houses it has."""
LARGEST_SHIFT, SHIFT_STEP = 4, 0.25
"""Of the background from a frame to the next, in pixels: the camera pans by 2 at most."""
LEAST_TEXTURE = 0.6
"""Grey levels by which a frame differs from itself moved by LARGEST_SHIFT, if its motion can be seen."""
LARGEST_DRAWN_ERROR = 0.5
"""Pixels a frame; a drawing with a larger `pan_error` does not show how its camera pans."""


class PoseScores(NamedTuple):
    """How well a clip follows a pose, 0 to 1."""

    accuracy: float
    """Fraction of the points along the limbs of the given skeletons at which the clip shows a figure."""
    iou: float
    """Intersection over union of the clip's figures and the rendered ones."""


class TextScores(NamedTuple):
    """Whether a clip looks most like the character, place and style of its prompt, one by one."""

    character: bool
    place: bool
    style: bool


class BackgroundScores(NamedTuple):
    """How the background changes and moves from each frame of a clip to the next."""

    background_change: float
    """Mean absolute difference in grey levels, without the camera's motion; nan where no two frames show
    background in common."""
    pan_unevenness: float
    """Mean absolute deviation of the motion from its median over the clip, in pixels a frame; nan where no
    motion can be seen."""
    pan_error: float
    """Mean absolute error of the motion against that of the given pan, in pixels a frame; nan without one,
    and where no motion can be seen."""


def limb_points(person: Float[np.ndarray, "17 3"], spacing: float = 1.0) -> Float[np.ndarray, "n 2"]:
    """Points about `spacing` pixels apart on arms, legs and sides of the trunk whose two joints are seen."""
    points = dict(zip(JOINTS, person, strict=True))
    lines = [np.empty((0, 2))]
    for a, b in LIMBS:
        if points[a][2] > 0 and points[b][2] > 0:
            start, end = points[a][:2], points[b][:2]
            count = max(2, int(np.ceil(np.linalg.norm(end - start) / spacing)) + 1)
            weight = np.linspace(0, 1, count)[:, None]
            lines.append((1 - weight) * start + weight * end)
    return np.concatenate(lines)


def drawn_parts(scene: Scene, keypoints: People, size: int) -> PartMaps:
    """Maps of the parts of plain figures with these keypoints."""
    plain = scene._replace(characters=(PLAIN,) * len(scene.characters))
    labels = render_frames(plain, keypoints, size, labels=True)[2]
    assert labels is not None
    return part_classes(labels)


def pose_scores(parts: PartMaps, keypoints: People, drawn: PartMaps) -> PoseScores:
    """How well a clip with these parts follows keypoints, of which `drawn` are the parts. Points outside of
    the frame do not count."""
    height, width = parts.shape[1:]
    hits = []
    for frame, people in enumerate(keypoints):
        x, y = np.floor(np.concatenate([limb_points(person) for person in people])).astype(int).T
        inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
        hits.append(parts[frame, y[inside], x[inside]] > 0)
    found, expected = parts > 0, drawn > 0
    union = max((found | expected).sum(), 1)
    return PoseScores(float(np.concatenate(hits).mean()), float((found & expected).sum() / union))


def text_scores(video: Frames, keypoints: People, scene: Scene, drawn: PartMaps) -> TextScores:
    """Whether the nearest named character, place and style are those of a scene with one named character.

    The distance of places and styles compares rows of the background (`_profile`).
    """
    background = ~grow(drawn > 0, FIGURE_MARGIN)
    profile = _profile(video, background)

    def place_distance(place: str, style: str) -> float:
        rendered = (_empty_place(place, style, seed, video.shape[1]) for seed in range(PLACE_SEEDS))
        return min(float(np.nanmean(np.abs(_profile(x, background[:1]) - profile))) for x in rendered)

    places = [place for place in PLACES if place not in OPEN_PLACES]
    return TextScores(
        nearest_character(video, keypoints, scene, drawn) == scene.characters[0],
        min(places, key=lambda place: place_distance(place, scene.style)) == scene.place,
        min(STYLES, key=lambda style: place_distance(scene.place, style)) == scene.style,
    )


@functools.cache  # clips of an evaluation are compared with the same few places
def _empty_place(place: str, style: str, seed: int, size: int) -> UInt8[np.ndarray, "1 h w 3"]:
    """A frame of a place, without anyone in it."""
    return render_frames(Scene((), place, style, HELD_OUT_MOTION, seed), np.empty((1, 0, 17, 3)), size)[0]


def nearest_character(video: Frames, keypoints: People, scene: Scene, drawn: PartMaps) -> str:
    """The named character whose renderings in this scene differ least from a clip of one figure: in the mean
    absolute difference, where parts are drawn."""
    body, size = shrink(drawn > 0, CORE), video.shape[1]

    def distance(name: str) -> float:
        rendered = render_frames(scene._replace(characters=(name,)), keypoints, size)[0]
        return float(np.abs(video.astype(np.float32) - rendered)[body].mean())

    return min(NAMED, key=distance)


def background_scores(
    video: Frames, parts: PartMaps, drawn: PartMaps, pan: float | None = None
) -> BackgroundScores:
    """Scores of a clip's background, which is where no figure is drawn, and where the clip shows none.

    `pan` is the velocity of the camera to the right in pixels a frame, where it is known.
    """
    background = ~grow((parts > 0) | (drawn > 0), FIGURE_MARGIN)
    shifts, changes = (x[np.isfinite(x)] for x in background_motion(video, background))
    nan = float("nan")
    return BackgroundScores(
        float(changes.mean()) if changes.size else nan,
        float(np.abs(shifts - np.median(shifts)).mean()) if shifts.size else nan,
        float(np.abs(shifts + pan).mean()) if shifts.size and pan is not None else nan,
    )


def shown_pan(scene: Scene, drawing: Frames, drawn: PartMaps) -> float | None:
    """The velocity of a scene's camera to the right in pixels a frame.

    None where it stands still, and where the drawing does not show it: on a plain background, or on the sea,
    where nothing but waves is seen to move.
    """
    pan = pan_velocity(scene, drawing.shape[1])
    if not pan or not background_scores(drawing, drawn, drawn, pan).pan_error <= LARGEST_DRAWN_ERROR:
        return None
    return pan


def part_deviation(video: Frames, drawn: PartMaps) -> float:
    """Mean over COLOURED_PARTS of the mean absolute deviation of a part's colour from its mean over the clip,
    in grey levels; nan where no part is seen in two frames."""
    deviations = []
    for part in COLOURED_PARTS:
        core = shrink(drawn == 1 + PARTS.index(part), CORE)
        seen = [i for i in range(len(video)) if core[i].sum() >= FEWEST_PIXELS]
        if len(seen) > 1:
            colours = np.stack([video[i][core[i]].mean(axis=0) for i in seen])
            deviations.append(np.abs(colours - colours.mean(axis=0)).mean())
    return float(np.mean(deviations)) if deviations else float("nan")


def background_motion(
    video: Frames, background: Bool[np.ndarray, "f h w"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Motion of the background to the right from each frame to the next, in pixels, and the mean absolute
    difference that is left, in grey levels. See `_background_shift` for nan."""
    found = [_background_shift(video, background, i) for i in range(len(video) - 1)]
    shifts, changes = np.array(found, np.float64).reshape(-1, 2).T
    return shifts, changes


def _background_shift(
    video: Frames, background: Bool[np.ndarray, "f h w"], index: int
) -> tuple[float, float]:
    """The horizontal shift that makes a frame's background most like the next one's, and the mean absolute
    difference that is left. Both are nan where the two frames show no background in common, and the shift is
    nan where the background looks the same wherever it is."""
    before, after = video[index].astype(np.float32), video[index + 1].astype(np.float32)
    width, margin = before.shape[1], LARGEST_SHIFT + 1
    columns = np.arange(margin, width - margin)
    best = (float("nan"), float("nan"))
    for shift in sorted(np.arange(-LARGEST_SHIFT, LARGEST_SHIFT + SHIFT_STEP, SHIFT_STEP), key=abs):
        source = columns - shift
        left = np.floor(source).astype(int)
        weight = (source - left)[:, None].astype(np.float32)
        moved = (1 - weight) * before[:, left] + weight * before[:, left + 1]
        valid = (
            background[index][:, left] & background[index][:, left + 1] & background[index + 1][:, columns]
        )
        if valid.any():
            difference = float(np.abs(moved - after[:, columns])[valid].mean())
            if not difference >= best[1]:
                best = (float(shift), difference)
    return best if _texture(before, background[index]) >= LEAST_TEXTURE else (float("nan"), best[1])


def _texture(frame: Float[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"]) -> float:
    """Mean absolute difference of a frame from itself moved by LARGEST_SHIFT, where the mask holds; 0 where
    it holds nowhere."""
    both = mask[:, LARGEST_SHIFT:] & mask[:, :-LARGEST_SHIFT]
    difference = np.abs(frame[:, LARGEST_SHIFT:] - frame[:, :-LARGEST_SHIFT])[both]
    return float(difference.mean()) if difference.size else 0.0


def _profile(video: Frames, mask: Bool[np.ndarray, "f h w"]) -> Float[np.ndarray, "h 6"]:
    """Mean and standard deviation of each row's colours where the mask holds, over all frames; nan in rows
    without any."""
    frames, weight = video.astype(np.float64), mask[..., None].astype(np.float64)
    count = weight.sum(axis=(0, 2))
    count = np.where(count > 0, count, np.nan)
    mean = (frames * weight).sum(axis=(0, 2)) / count
    square = (frames**2 * weight).sum(axis=(0, 2)) / count
    return np.concatenate([mean, np.sqrt(np.maximum(square - mean**2, 0))], axis=-1)


def grow(mask: Bool[np.ndarray, "f h w"], pixels: int) -> Bool[np.ndarray, "f h w"]:
    """The mask with all pixels that are at most so many pixels away from it, in x and in y."""
    padded = np.pad(mask, ((0, 0), (pixels, pixels), (pixels, pixels)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * pixels + 1,) * 2, axis=(1, 2))
    return windows.max(axis=(-1, -2))


def shrink(mask: Bool[np.ndarray, "f h w"], pixels: int) -> Bool[np.ndarray, "f h w"]:
    """The mask without the pixels that are so near its rim."""
    return ~grow(~mask, pixels)
