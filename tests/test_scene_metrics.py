"""Scores of clips of the synthetic world: drawings get the best scores, each fault lowers its own score."""

import numpy as np
import pytest

from fyp_jax.evaluation.autoencoder import held_out_scene
from fyp_jax.evaluation.part_segmenter import part_classes
from fyp_jax.evaluation.scene_metrics import (
    background_motion,
    consistency,
    drawn_parts,
    limb_points,
    part_deviation,
    pose_scores,
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
    motion = background_motion(clip.video, drawn_parts(scene, clip.keypoints, 128) + parts == 0)
    np.testing.assert_allclose(motion, -pan_velocity(scene), atol=0.26)


def test_consistency_of_a_drawing_is_lost_by_frames_that_do_not_belong_together():
    scene = scene_of("person", 2, "park", pan=0.01)
    clip, parts = clip_of(scene)
    drawn = drawn_parts(scene, clip.keypoints, 128)
    good = consistency(clip.video, parts, drawn)
    others = [render_clip(scene_of("person", 20 + i, "park", pan=0.01), FRAMES) for i in range(FRAMES)]
    mixed = np.stack([other.video[i] for i, other in enumerate(others)])
    bad = consistency(mixed, parts, drawn)
    assert good.part_deviation < 12
    assert bad.part_deviation > 2 * good.part_deviation
    assert bad.background_change > 3 * good.background_change
    assert good.pan_unevenness < 0.3
    assert bad.pan_unevenness > 0.5


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
    _, change, unevenness = consistency(clip.video, everywhere, everywhere)
    assert np.isnan([change, unevenness]).all()
    everywhere[1:] = 0  # one frame without any: the two others are compared
    assert np.isfinite(consistency(clip.video, everywhere, everywhere)[1:]).all()


def test_scenes_of_the_evaluation_have_held_out_seeds():
    assert held_out_scene(3).seed >= 10**9
