"""Scores of clips of the synthetic world: drawings get the best scores, each fault lowers its own score."""

import numpy as np
import pytest

from fyp_jax.evaluation.autoencoder import held_out_scene
from fyp_jax.evaluation.part_segmenter import part_classes
from fyp_jax.evaluation.scene_metrics import (
    background_motion,
    background_scores,
    drawn_parts,
    limb_points,
    part_deviation,
    pose_scores,
    shown_pan,
    text_scores,
)
from fyp_jax.synthetic.looks import NAMED
from fyp_jax.synthetic.scenes import Scene, SyntheticClip, pan_velocity, render_clip

FRAMES = 4


def clip_of(scene: Scene, frames: int = FRAMES) -> tuple[SyntheticClip, np.ndarray]:
    """A drawn clip, and its parts as a segmenter without fault would give them."""
    clip = render_clip(scene, frames, labels=True)
    assert clip.labels is not None
    return clip, part_classes(clip.labels)


def scene_of(character: str, seed: int, place: str = "beach", pan: float = 0.0) -> Scene:
    return Scene((character,), place, "none", "walk", 10**9 + seed, pan=pan)


def test_drawings_follow_their_own_pose_and_not_another_one():
    scenes = [scene_of("person", seed) for seed in range(6)]
    own, other = [], []
    for scene, wrong in zip(scenes, scenes[1:] + scenes[:1], strict=True):
        clip, parts = clip_of(scene)
        for into, source in ((own, scene), (other, wrong)):
            keypoints = render_clip(source, FRAMES).keypoints
            into.append(pose_scores(parts, keypoints, drawn_parts(source, keypoints, 128)))
        assert clip.video.shape == (FRAMES, 128, 128, 3)
    accuracy, chance = (np.mean([score.accuracy for score in scores]) for scores in (own, other))
    assert accuracy > 0.97
    assert chance < accuracy - 0.25
    assert np.mean([score.iou for score in own]) > np.mean([score.iou for score in other]) + 0.25


def test_joints_that_are_not_seen_have_no_limb_points():
    person = np.ones((17, 3)) * [20, 20, 0]
    assert limb_points(person).shape == (0, 2)


@pytest.mark.slow
def test_drawings_look_most_like_their_own_character_place_and_style():
    right = []
    for number, name in enumerate(NAMED):
        scene = scene_of(name, number, ("beach", "snow", "moon")[number % 3], 0.01 * (number % 2))
        clip, _ = clip_of(scene)
        drawn = drawn_parts(scene, clip.keypoints, 128)
        # the rendering that it is compared with has another seed: other clouds, another body of the same name
        right.append(text_scores(clip.video, clip.keypoints, scene._replace(seed=5), drawn))
    assert np.mean([score.character for score in right]) == 1
    assert np.mean([score.place for score in right]) >= 0.9
    assert np.mean([score.style for score in right]) >= 0.9


def test_style_and_place_of_another_drawing_are_told_apart():
    clip, _ = clip_of(scene_of("robot", 3, "moon"))
    wrong = scene_of("panda", 3, "beach")
    drawn = drawn_parts(wrong, clip.keypoints, 128)
    scores = text_scores(clip.video, clip.keypoints, wrong, drawn)
    assert not scores.character
    assert not scores.place


@pytest.mark.parametrize("pan", [-0.01, 0.0, 0.005, 0.015])
def test_background_moves_as_the_camera_pans(pan: float):
    scene = scene_of("robot", 8, "forest", pan)
    clip, parts = clip_of(scene, 3)
    shifts, _ = background_motion(clip.video, drawn_parts(scene, clip.keypoints, 128) + parts == 0)
    np.testing.assert_allclose(shifts, -pan_velocity(scene), atol=0.26)


def test_scores_of_a_drawing_are_lost_by_frames_that_do_not_belong_together():
    scene = scene_of("person", 2, "park", pan=0.01)
    clip, parts = clip_of(scene)
    drawn = drawn_parts(scene, clip.keypoints, 128)
    others = [render_clip(scene_of("person", 20 + i, "park", pan=0.01), FRAMES) for i in range(FRAMES)]
    mixed = np.stack([other.video[i] for i, other in enumerate(others)])
    assert part_deviation(clip.video, drawn) < 12
    assert part_deviation(mixed, drawn) > 2 * part_deviation(clip.video, drawn)
    pan = pan_velocity(scene)
    good, bad = (background_scores(video, parts, drawn, pan) for video in (clip.video, mixed))
    assert bad.background_change > 3 * good.background_change
    assert good.pan_unevenness < 0.3
    assert bad.pan_unevenness > 0.5
    assert good.pan_error < 0.3
    assert bad.pan_error > 1


def test_pan_error_is_that_of_each_frame_against_the_camera_of_the_drawing():
    scene = scene_of("person", 2, "forest", pan=1.5 / 128)
    clip, parts = clip_of(scene, 5)
    drawn = drawn_parts(scene, clip.keypoints, 128)

    def errors(order: list[int], pan: float) -> tuple[float, float]:
        _, unevenness, error = background_scores(clip.video[order], parts[order], drawn[order], pan)
        return unevenness, error

    np.testing.assert_allclose(errors([0, 1, 2, 3, 4], 1.5), [0, 0], atol=0.1)
    np.testing.assert_allclose(errors([0, 0, 0, 0, 0], 1.5), [0, 1.5], atol=0.1)  # it stands still
    np.testing.assert_allclose(errors([4, 3, 2, 1, 0], 1.5), [0, 3], atol=0.1)  # it pans the other way
    np.testing.assert_allclose(errors([0, 2, 1, 3, 2], 1.5), [2.25, 2.25], atol=0.1)  # to and fro
    assert np.isnan(background_scores(clip.video, parts, drawn).pan_error)


@pytest.mark.parametrize(("place", "seen"), [("park", True), ("simple", False)])
def test_pan_of_a_place_is_known_where_a_drawing_shows_it(place: str, seen: bool):
    moving, still = (scene_of("robot", 1, place, pan) for pan in (0.01, 0.0))
    for scene, expected in ((moving, pan_velocity(moving) if seen else None), (still, None)):
        clip, _ = clip_of(scene, 3)
        assert shown_pan(scene, clip.video, drawn_parts(scene, clip.keypoints, 128)) == expected


def test_plain_background_has_no_motion_but_changes():
    video = np.full((3, 64, 64, 3), 100, np.uint8)
    video[1] += 10
    drawn = np.zeros((3, 64, 64), np.uint8)
    scores = background_scores(video, drawn, drawn, 1.0)
    assert scores.background_change == pytest.approx(10)
    assert np.isnan([scores.pan_unevenness, scores.pan_error]).all()


def test_deviation_of_a_colour_is_that_of_its_levels():
    drawn = np.zeros((2, 16, 16), np.uint8)
    drawn[:, 4:12, 4:12] = 1  # a torso
    video = np.zeros((2, 16, 16, 3), np.uint8)
    video[0][drawn[0] == 1], video[1][drawn[1] == 1] = 100, 120
    assert part_deviation(video, drawn) == pytest.approx(10)
    assert np.isnan(part_deviation(video, np.zeros_like(drawn)))


def test_clip_without_background_has_no_score_of_it():
    clip, parts = clip_of(scene_of("person", 2, "park"), 3)
    everywhere = np.ones_like(parts)
    assert np.isnan(background_scores(clip.video, everywhere, everywhere, 1.0)).all()
    everywhere[1:] = 0  # one frame without any: the two others are compared
    assert np.isfinite(background_scores(clip.video, everywhere, everywhere, 1.0)).all()


def test_scenes_of_the_evaluation_have_held_out_seeds():
    assert held_out_scene(3).seed >= 10**9
