"""The evaluation set of the synthetic world: scenes that no training data has, and scores of their clips."""

import enum
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from fyp_jax.evaluation.clip_records import ClipScores
from fyp_jax.evaluation.part_segmenter import segment_parts
from fyp_jax.evaluation.scene_metrics import (
    People,
    background_scores,
    drawn_parts,
    part_deviation,
    pose_scores,
    shown_pan,
    text_scores,
)
from fyp_jax.evaluation.sharpness import edge_sharpness, mean_edge_width
from fyp_jax.evaluation.statistics import bootstrap_ci
from fyp_jax.media.images import Frames
from fyp_jax.pose.skeleton import draw_skeleton
from fyp_jax.synthetic.looks import OPEN
from fyp_jax.synthetic.motions import HELD_OUT_MOTION
from fyp_jax.synthetic.pairs import HELD_OUT_PAIRS, TRAIN_PAIRS
from fyp_jax.synthetic.places import OPEN_PLACES, PLACES
from fyp_jax.synthetic.scenes import (
    FIRST_HELD_OUT_SEED,
    SIZE,
    Scene,
    caption,
    render_clip,
)
from fyp_jax.synthetic.styles import STYLES

SPACING = 100_000
"""Seeds between the kinds of cases, so that no two of them share a scene."""


class Kind(enum.Enum):
    """What the captions of cases name."""

    NAMED = "named"
    """A named character and a place that training has together."""
    HELD_OUT_PAIRS = "held-out pairs"
    """A named character and a place that training never has together."""
    OPEN = "open"
    """An open character, whose looks the caption does not say."""


class SceneCase(NamedTuple):
    """A scene, and the pose sequence that its clip should follow."""

    scene: Scene
    keypoints: People
    pose_images: UInt8[np.ndarray, "f h w 3"]
    """Skeletons, RGB on black."""

    @property
    def caption(self) -> str:
        return caption(self.scene)


def make_scene_cases(count: int, frames: int, kind: Kind, size: int = SIZE) -> list[SceneCase]:
    """`count` scenes with the held-out motion. They cycle through characters, places and styles."""
    pairs = {
        Kind.NAMED: TRAIN_PAIRS,
        Kind.HELD_OUT_PAIRS: HELD_OUT_PAIRS,
        Kind.OPEN: [(name, place) for name in OPEN for place in PLACES if place not in OPEN_PLACES],
    }[kind]
    order = np.random.default_rng(0).permutation(len(pairs))
    cases = []
    for i in range(count):
        character, place = pairs[order[i % len(pairs)]]
        seed = FIRST_HELD_OUT_SEED + SPACING * (1 + list(Kind).index(kind)) + i
        scene = Scene((character,), place, list(STYLES)[i % len(STYLES)], HELD_OUT_MOTION, seed)
        keypoints = render_clip(scene, frames, size).keypoints
        pose_images = np.stack([draw_skeleton(people, size, size) for people in keypoints])
        cases.append(SceneCase(scene, keypoints, pose_images))
    return cases


class Score(NamedTuple):
    """The mean of a score over clips, its 95% interval (`ConfidenceInterval`), and what it is the mean of."""

    mean: float
    low: float
    high: float
    clips: tuple[float | None, ...]
    """The score of each clip, in the order of the cases; None where a clip has none."""


class SceneScores(NamedTuple):
    """Scores of one model or ablation; None where no clip has one."""

    pose_accuracy: Score | None
    pose_accuracy_shuffled: Score | None
    iou: Score | None
    character: Score | None
    place: Score | None
    style: Score | None
    sharpness: Score | None
    edge_width: Score | None
    part_deviation: Score | None
    background_change: Score | None
    pan_unevenness: Score | None
    pan_error: Score | None


def score_scenes(videos: Sequence[Frames], cases: Sequence[SceneCase]) -> SceneScores:
    """Scores of one clip for each case. The other pose of the chance level is that of the next case."""
    others = [*cases[1:], cases[0]]
    return mean_scores([score_clip(*args) for args in zip(videos, cases, others, strict=True)])


def mean_scores(clips: Sequence[ClipScores]) -> SceneScores:
    """The means of scores over clips."""
    return SceneScores(**{name: _score([clip.get(name) for clip in clips]) for name in SceneScores._fields})


def _score(clips: Sequence[float | None]) -> Score | None:
    found = [value for value in clips if value is not None]
    return Score(*bootstrap_ci(found), tuple(clips)) if found else None


def score_clip(video: Frames, case: SceneCase, other: SceneCase) -> dict[str, float | None]:
    """The scores of a clip by their names in SceneScores; None for those that it does not have.

    The shuffled accuracy is the chance level: it compares the clip with the pose of another case. Clips of
    open captions have no score for the text.
    """
    size, parts, (drawing,) = video.shape[1], segment_parts(video), drawings([case])
    drawn = drawn_parts(case.scene, case.keypoints, size)
    pan = shown_pan(case.scene, drawing, drawn)
    own, shuffled = (pose_scores(parts, keypoints, drawn) for keypoints in (case.keypoints, other.keypoints))
    scores: dict[str, float] = {
        "pose_accuracy": own.accuracy,
        "pose_accuracy_shuffled": shuffled.accuracy,
        "iou": own.iou,
        "sharpness": edge_sharpness(video, drawing),
        "edge_width": mean_edge_width(video),
        "part_deviation": part_deviation(video, drawn),
        **background_scores(video, parts, drawn, pan)._asdict(),
    }
    if case.scene.characters[0] not in OPEN:
        scores |= text_scores(video, case.keypoints, case.scene._replace(seed=0), drawn)._asdict()
    return {
        name: float(scores[name]) if np.isfinite(scores.get(name, np.nan)) else None
        for name in SceneScores._fields
    }


def drawings(cases: Sequence[SceneCase]) -> list[Frames]:
    """The scenes of the cases, drawn: what a model without fault would sample."""
    return [render_clip(case.scene, len(case.keypoints), case.pose_images.shape[1]).video for case in cases]
