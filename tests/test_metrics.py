"""Metrics: the world's own drawings score high, anything else lower; keypoints and the bootstrap."""

import numpy as np
import pytest

from fyp_jax import metrics
from fyp_jax.data.mini_world.clips import PAIRS, Scene, draw_clip
from fyp_jax.data.mini_world.styles import STYLES

SCENES = [Scene(*PAIRS[(7 * i) % len(PAIRS)], list(STYLES)[i % 4], "dance", 900 + i) for i in range(8)]


def drawn(scene: Scene, frames: int = 2) -> tuple[np.ndarray, np.ndarray]:
    clip = draw_clip(scene, frames)
    noise = np.random.default_rng(0).normal(0, 6, clip.video.shape)
    return np.clip(clip.video + noise, 0, 255).astype(np.uint8), clip.keypoints


def test_a_drawn_clip_follows_its_own_pose_and_not_another():
    right, wrong = [], []
    for scene in SCENES:
        video, points = drawn(scene)
        right.append(metrics.pose_scores(video, points, scene))
        other = draw_clip(scene._replace(seed=scene.seed + 50), 2).keypoints
        wrong.append(metrics.pose_scores(video, other, scene))
    accuracy, iou = np.mean(right, axis=0)
    chance, chance_iou = np.mean(wrong, axis=0)
    assert accuracy > 0.97
    assert iou > 0.8
    assert chance < accuracy - 0.35
    assert chance_iou < iou - 0.35


def test_an_empty_place_follows_no_pose():
    scene = SCENES[0]
    points = draw_clip(scene, 1).keypoints
    empty = metrics.draw_place(scene.background, scene.style, scene.seed)[None]
    assert metrics.pose_scores(empty, points, scene).accuracy < 0.05


@pytest.mark.parametrize("scene", SCENES, ids=str)
def test_a_drawn_clip_is_what_its_prompt_says(scene: Scene):
    video, points = drawn(scene)
    assert metrics.text_scores(video, points, scene) == (True, True, True)


@pytest.mark.parametrize(
    ("field", "value"), [("character", "hulk"), ("background", "street"), ("style", "sunset")]
)
def test_a_clip_of_something_else_is_told(field: str, value: str):
    scene = Scene("robot", "beach", "none", "dance", 5)
    video, points = drawn(scene)
    scores = metrics.text_scores(video, points, scene._replace(**{field: value}))
    assert not getattr(scores, field)


def test_a_still_background_does_not_flicker():
    scene = SCENES[0]
    clip = draw_clip(scene, 4)
    assert metrics.steadiness(clip.video, clip.keypoints, scene).flicker == 0
    brighter = np.clip(clip.video + np.array([0, 10, 0, 10])[:, None, None, None], 0, 255).astype(np.uint8)
    told = metrics.steadiness(brighter, clip.keypoints, scene)
    assert 8 < told.flicker <= 10
    assert told.drift > metrics.steadiness(clip.video, clip.keypoints, scene).drift


def test_cosine_of_consecutive_frames():
    assert metrics.consecutive_cosine(np.ones((3, 2, 4))) == pytest.approx(1)
    assert metrics.consecutive_cosine(np.array([[1.0, 0], [0, 1], [0, -1]])) == pytest.approx(-0.5)


def test_pck_and_oks_of_equal_and_of_moved_keypoints():
    given = draw_clip(SCENES[0], 3).keypoints
    assert metrics.pck(given, given) == metrics.oks(given, given) == 1
    size = np.ptp(given[..., 1], axis=1).max()
    near, far = given.copy(), given.copy()
    near[..., 0] += 0.05 * size
    far[..., 0] += 0.5 * size
    assert metrics.pck(near, given) == 1
    assert metrics.pck(far, given) == 0
    assert 0.2 < metrics.oks(near, given) < 1
    assert metrics.oks(far, given) < 0.2
    half = far.copy()
    half[:, ::2] = given[:, ::2]
    unsure = given.copy()
    unsure[:, 1::2, 2] = 0
    assert metrics.pck(half, unsure) == 1, "joints that are not there count"


def test_the_bootstrap_is_the_same_each_time_and_narrows_with_more_clips():
    values = np.random.default_rng(1).random(40).tolist()
    few, many = metrics.estimate(values[:10]), metrics.estimate(values * 10)
    assert metrics.estimate(values) == metrics.estimate(values)
    assert few.low < few.mean < few.high
    assert many.high - many.low < (few.high - few.low) / 3
