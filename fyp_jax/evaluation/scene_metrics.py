"""Scores of clips of the synthetic world: pose, text, and what frames have in common.

Clips are uint8 [f h w 3], keypoints [f p 17 3] in pixels, maps of parts [f h w] as `part_segmenter` numbers
them. Where a figure is comes from the segmenter; where it should be, from renderings of the same keypoints.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from fyp_jax.evaluation.part_segmenter import part_classes
from fyp_jax.media.images import Frames
from fyp_jax.pose.skeleton import JOINTS
from fyp_jax.synthetic.looks import NAMED
from fyp_jax.synthetic.parts import PARTS
from fyp_jax.synthetic.places import OPEN_PLACES, PLACES
from fyp_jax.synthetic.scenes import Scene, render_frames
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
LARGEST_SHIFT, SHIFT_STEP = 4.0, 0.25
"""Of the background from a frame to the next, in pixels: the camera pans by 2 at most."""


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


class Consistency(NamedTuple):
    """What frames of a clip have in common; all but the last in grey levels of 255."""

    part_deviation: float
    """Mean absolute deviation of a part's colour in a frame from its mean over the clip."""
    background_change: float
    """Mean absolute difference of the background from each frame to the next, without the camera's motion."""
    pan_unevenness: float
    """Mean absolute deviation of the background's motion from its median over the clip, in pixels a frame."""


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
    size = video.shape[1]
    background = ~grow(drawn > 0, FIGURE_MARGIN)
    profile = _profile(video, background)
    nobody = keypoints[:, :0]

    def place_distance(place: str, style: str) -> float:
        scenes = (
            scene._replace(place=place, style=style, seed=seed, characters=()) for seed in range(PLACE_SEEDS)
        )
        rendered = (render_frames(one, nobody[:1], size)[0] for one in scenes)
        return min(float(np.nanmean(np.abs(_profile(x, background[:1]) - profile))) for x in rendered)

    places = [place for place in PLACES if place not in OPEN_PLACES]
    return TextScores(
        nearest_character(video, keypoints, scene, drawn) == scene.characters[0],
        min(places, key=lambda place: place_distance(place, scene.style)) == scene.place,
        min(STYLES, key=lambda style: place_distance(scene.place, style)) == scene.style,
    )


def nearest_character(video: Frames, keypoints: People, scene: Scene, drawn: PartMaps) -> str:
    """The named character whose renderings in this scene differ least from a clip of one figure: in the mean
    absolute difference, where parts are drawn."""
    body, size = shrink(drawn > 0, CORE), video.shape[1]

    def distance(name: str) -> float:
        rendered = render_frames(scene._replace(characters=(name,)), keypoints, size)[0]
        return float(np.abs(video.astype(np.float32) - rendered)[body].mean())

    return min(NAMED, key=distance)


def consistency(video: Frames, parts: PartMaps, drawn: PartMaps) -> Consistency:
    """How little the looks and the background of a clip change. Figures are where they are drawn, and where
    the clip shows them. The scores of a background that no two frames show are nan."""
    background = ~grow((parts > 0) | (drawn > 0), FIGURE_MARGIN)
    found = np.array([_background_shift(video, background, i) for i in range(len(video) - 1)])
    shifts, changes = found[np.isfinite(found).all(axis=1)].T
    deviation = part_deviation(video, drawn)
    if not len(shifts):
        return Consistency(deviation, float("nan"), float("nan"))
    unevenness = np.abs(shifts - np.median(shifts)).mean()
    return Consistency(deviation, float(changes.mean()), float(unevenness))


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


def background_motion(video: Frames, background: Bool[np.ndarray, "f h w"]) -> Float[np.ndarray, "f-1"]:
    """Motion of the background to the right from each frame to the next, in pixels."""
    return np.array([_background_shift(video, background, i)[0] for i in range(len(video) - 1)])


def _background_shift(
    video: Frames, background: Bool[np.ndarray, "f h w"], index: int
) -> tuple[float, float]:
    """The horizontal shift that makes a frame's background most like the next one's, and the mean absolute
    difference that is left; nan where the two frames show no background in common."""
    before, after = video[index].astype(np.float32), video[index + 1].astype(np.float32)
    width, margin = before.shape[1], int(LARGEST_SHIFT) + 1
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
    return best


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
    return ~grow(~mask, pixels)
