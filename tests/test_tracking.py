"""People over time: identities over crossings and gaps, filled gaps, and the one-euro filter."""

import numpy as np
import pytest

from fyp_jax.pose.similarity import iou, oks
from fyp_jax.pose.smoothing import MAX_GAP, fill_gaps, one_euro
from fyp_jax.pose.tracking import MAX_LOST, largest, similarity, track_people
from fyp_jax.synthetic.kinematics import Figure
from keypoint_files import motion_keypoints

SIDE = 400


def walker(frames: int, start: float, speed: float, height: float = 0.6, seed: int = 0) -> np.ndarray:
    """A walking person that moves `speed` pixels a frame, [f 17 3]."""
    joints = motion_keypoints("walk", Figure(height, 0.0, 0.9), frames, seed, SIDE)
    joints[..., 0] += start + speed * np.arange(frames)[:, None]
    return joints


def owner(track: object, people: np.ndarray) -> set[int]:
    """The numbers of the people [p f 17 3] of whom a track has joints."""
    return {
        number
        for frame, person in track.seen.items()  # pyright: ignore
        for number, joints in enumerate(people)
        if np.array_equal(joints[frame], person)
    }


@pytest.mark.parametrize("hidden", [0, 3, 8])
@pytest.mark.parametrize("speed", [4, 9])
def test_people_who_cross_keep_their_tracks(hidden: int, speed: int):
    """In the middle, only the nearer person is detected; the order of the detections is random."""
    frames = 40
    a = walker(frames, 200 - speed * frames / 2, speed, 0.62, 0)
    b = walker(frames, 200 + speed * frames / 2, -speed, 0.58, 3)
    people = np.stack([a, b])
    rng = np.random.default_rng(0)
    detections = []
    for frame in range(frames):
        here = people[:, frame]
        if abs(frame - frames // 2) <= hidden // 2 and hidden:
            here = here[:1]
        detections.append(here[rng.permutation(len(here))])
    tracks = track_people(detections)
    assert [owner(track, people) for track in tracks] == [{0}, {1}]
    assert sorted(len(track.seen) for track in tracks)[1] == frames


def test_the_larger_person_is_first_and_noise_is_nobody():
    small, large = walker(6, 80, 0, 0.3), walker(6, 280, 0, 0.8)
    faint = walker(6, 180, 0)
    faint[:, 2:, 2] = 0.1  # two joints that can be drawn
    tracks = track_people([np.stack(frame) for frame in zip(small, faint, large, strict=True)])
    assert [owner(track, np.stack([large, small])) for track in tracks] == [{0}, {1}]


def test_somebody_who_comes_back_takes_the_place_that_is_free():
    frames = 2 * MAX_LOST
    person, small = walker(frames + 20, 280, 0, 0.8), walker(frames + 20, 80, 0, 0.3)
    gone = range(10, 10 + MAX_LOST + 5)
    detections = [np.stack([small[f]] if f in gone else [small[f], person[f]]) for f in range(frames + 20)]
    tracks = track_people(detections)
    assert len(tracks) == 3
    chosen = largest(tracks, 1)
    assert [owner(track, np.stack([person, small])) for track in chosen] == [{0}, {0}]
    assert len(largest(tracks, 2)) == 3


def test_gaps_are_filled_linearly_up_to_the_longest():
    keypoints = np.ones((30, 17, 3))
    keypoints[..., 0] = 3 * np.arange(30)[:, None]
    expected = keypoints.copy()
    keypoints[4 : 4 + MAX_GAP] = 0
    keypoints[12 : 13 + MAX_GAP] = 0  # too long
    keypoints[22, 5] = (999, 999, 0.1)  # one joint alone
    keypoints[28:] = 0  # no frame beside it
    keypoints[27, :, 2] = 0.5
    filled = fill_gaps(keypoints)
    assert np.allclose(filled[:12], expected[:12])
    assert np.allclose(filled[22, 5], expected[22, 5])
    assert not filled[12 : 13 + MAX_GAP].any()
    assert not filled[28:].any()
    keypoints[26, :, 2] = 0
    assert np.allclose(fill_gaps(keypoints)[26, :, 2], 0.5)  # the lower confidence


@pytest.mark.parametrize("scale", [1, 4])
def test_one_euro_takes_jitter_from_a_person_at_rest(scale: int):
    rng = np.random.default_rng(0)
    still = np.repeat(walker(1, 200, 0), 90, axis=0)
    noisy = still.copy()
    noisy[..., :2] = scale * (still[..., :2] + rng.normal(0, 1.5, (90, 17, 2)))
    smooth = one_euro(noisy, 30.0)
    before, after = (np.diff(x[..., :2], axis=0).std() for x in (noisy, smooth))
    assert after < 0.4 * before
    assert np.array_equal(smooth[..., 2], noisy[..., 2])


def test_one_euro_has_no_lag_and_starts_anew_after_a_gap():
    moving = walker(60, 0, 5)
    moving[..., :2] = moving[:1, :, :2]
    moving[..., 0] += 5 * np.arange(60)[:, None]
    smooth = one_euro(moving, 30.0)
    assert np.abs(smooth - moving)[20:40].max() < 0.2
    jump = moving.copy()
    jump[30:33, :, 2] = 0
    jump[33:, :, 0] += 100
    smooth = one_euro(jump, 30.0)
    assert np.abs(smooth - jump)[33:36].max() < 20  # the jump of 100 is no motion
    assert np.array_equal(smooth[30:33], jump[30:33])


def test_similarity_of_people():
    person = walker(1, 200, 0)[0]
    assert similarity(person, person) == pytest.approx(1)
    assert similarity(person, person + np.array([300, 0, 0])) == pytest.approx(0, abs=1e-6)
    assert similarity(person, person * (1, 1, 0)) == 0
    assert iou(np.array([0.0, 0, 2, 2]), np.array([1.0, 0, 3, 2])) == pytest.approx(1 / 3)
    assert iou(np.zeros(4), np.zeros(4)) == 0
    assert oks(person[None], person[None]) == 1
