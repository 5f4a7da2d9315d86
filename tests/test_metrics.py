"""Metrics of keypoints and of features over time, and the bootstrap."""

import numpy as np
import pytest

from fyp_jax.evaluation.keypoint_metrics import pck
from fyp_jax.evaluation.statistics import bootstrap_ci, consecutive_cosine, paired_difference
from fyp_jax.pose.similarity import oks
from fyp_jax.synthetic.scenes import Scene, scene_keypoints


def test_consecutive_cosine_is_a_mean_over_neighbouring_frames():
    assert consecutive_cosine(np.ones((3, 2, 4))) == pytest.approx(1)
    assert consecutive_cosine(np.array([[1.0, 0], [0, 1], [0, -1]])) == pytest.approx(-0.5)


def test_pck_and_oks_fall_as_keypoints_move_away():
    target = scene_keypoints(Scene(("robot",), "beach", "none", "dance", 10**9), range(3))[:, 0]
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


def test_paired_difference_tells_apart_what_two_intervals_do_not():
    rng = np.random.default_rng(0)
    clips = rng.normal(0.5, 0.2, 40)
    better = clips + rng.normal(0.03, 0.02, 40)
    one, two = bootstrap_ci(clips.tolist()), bootstrap_ci(better.tolist())
    difference = paired_difference(better.tolist(), clips.tolist())
    assert difference is not None
    assert one.high > two.low, "the two intervals overlap"
    assert difference.mean == pytest.approx(two.mean - one.mean)
    assert 0 < difference.low < difference.high < 0.05


def test_paired_difference_is_that_of_clips_with_both_scores():
    found = paired_difference([1.0, None, 5.0], [0.5, 2.0, None])
    assert found is not None
    assert found.mean == found.low == found.high == 0.5
    assert paired_difference([1.0, None], [None, 1.0]) is None
    with pytest.raises(ValueError, match="shorter"):
        paired_difference([1.0, 2.0], [1.0])
