"""Metrics: renderings of the synthetic world score high, other clips lower; keypoints and the bootstrap."""

import numpy as np
import pytest

from fyp_jax.evaluation.keypoint_metrics import pck
from fyp_jax.evaluation.statistics import bootstrap_ci, consecutive_cosine
from fyp_jax.evaluation.synthetic_metrics import pose_scores, temporal_consistency, text_scores
from fyp_jax.pose.similarity import oks
from fyp_jax.synthetic.scenes import PAIRS, Scene, render_background, render_clip
from fyp_jax.synthetic.styles import STYLES

SCENES = [Scene(*PAIRS[(7 * i) % len(PAIRS)], list(STYLES)[i % 4], "dance", 900 + i) for i in range(8)]


def noisy_rendering(scene: Scene, frames: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """A rendered clip with a little noise, and its keypoints."""
    clip = render_clip(scene, frames)
    noise = np.random.default_rng(0).normal(0, 6, clip.video.shape)
    return np.clip(clip.video + noise, 0, 255).astype(np.uint8), clip.keypoints


def test_rendered_clip_follows_its_own_pose_and_not_another():
    right, wrong = [], []
    for scene in SCENES:
        video, points = noisy_rendering(scene)
        right.append(pose_scores(video, points, scene))
        other = render_clip(scene._replace(seed=scene.seed + 50), 2).keypoints
        wrong.append(pose_scores(video, other, scene))
    accuracy, iou = np.mean(right, axis=0)
    chance, chance_iou = np.mean(wrong, axis=0)
    assert accuracy > 0.97
    assert iou > 0.8
    assert chance < accuracy - 0.35
    assert chance_iou < iou - 0.35


def test_background_alone_follows_no_pose():
    scene = SCENES[0]
    points = render_clip(scene, 1).keypoints
    empty = render_background(scene.background, scene.style, scene.seed)[None]
    assert pose_scores(empty, points, scene).accuracy < 0.05


@pytest.mark.parametrize("scene", SCENES, ids=str)
def test_rendered_clip_scores_the_words_of_its_prompt(scene: Scene):
    video, points = noisy_rendering(scene)
    assert text_scores(video, points, scene) == (True, True, True)


@pytest.mark.parametrize(
    ("field", "value"), [("character", "hulk"), ("background", "street"), ("style", "sunset")]
)
def test_clip_of_another_prompt_scores_no_such_word(field: str, value: str):
    scene = Scene("robot", "beach", "none", "dance", 5)
    video, points = noisy_rendering(scene)
    scores = text_scores(video, points, scene._replace(**{field: value}))
    assert not getattr(scores, field)


def test_flicker_and_drift_measure_brightness_changes():
    scene = SCENES[0]
    clip = render_clip(scene, 4)
    assert temporal_consistency(clip.video, clip.keypoints, scene).flicker == 0
    brighter = np.clip(clip.video + np.array([0, 10, 0, 10])[:, None, None, None], 0, 255).astype(np.uint8)
    changed = temporal_consistency(brighter, clip.keypoints, scene)
    assert 8 < changed.flicker <= 10
    assert changed.drift > temporal_consistency(clip.video, clip.keypoints, scene).drift


def test_consecutive_cosine_is_a_mean_over_neighbouring_frames():
    assert consecutive_cosine(np.ones((3, 2, 4))) == pytest.approx(1)
    assert consecutive_cosine(np.array([[1.0, 0], [0, 1], [0, -1]])) == pytest.approx(-0.5)


def test_pck_and_oks_fall_as_keypoints_move_away():
    target = render_clip(SCENES[0], 3).keypoints
    assert pck(target, target) == oks(target, target) == 1
    size = np.ptp(target[..., 1], axis=1).max()
    near, far = target.copy(), target.copy()
    near[..., 0] += 0.05 * size
    far[..., 0] += 0.5 * size
    assert pck(near, target) == 1
    assert pck(far, target) == 0
    assert 0.2 < oks(near, target) < 1
    assert oks(far, target) < 0.2
    half = far.copy()
    half[:, ::2] = target[:, ::2]
    unsure = target.copy()
    unsure[:, 1::2, 2] = 0
    assert pck(half, unsure) == 1, "joints of confidence 0 count"


def test_bootstrap_interval_repeats_and_narrows_with_more_clips():
    values = np.random.default_rng(1).random(40).tolist()
    few, many = bootstrap_ci(values[:10]), bootstrap_ci(values * 10)
    assert bootstrap_ci(values) == bootstrap_ci(values)
    assert few.low < few.mean < few.high
    assert many.high - many.low < (few.high - few.low) / 3
