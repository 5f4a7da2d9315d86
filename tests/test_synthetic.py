"""The mini world: what a scene decides, what is held out, and that figures stand where their joints are."""

import re

import numpy as np
import pytest

from fyp_jax.convert.pipeline_folder import PipelineFolder
from fyp_jax.evaluation.synthetic_metrics import limb_points
from fyp_jax.pose.skeleton import JOINTS
from fyp_jax.synthetic.backgrounds import BACKGROUNDS
from fyp_jax.synthetic.characters import CHARACTERS
from fyp_jax.synthetic.motions import FREE, HELD_OUT_MOTION, MOTIONS, Body, keypoints
from fyp_jax.synthetic.scenes import (
    HELD_OUT_PAIRS,
    PAIRS,
    TRAIN_PAIRS,
    Scene,
    caption,
    masks,
    render_background,
    render_clip,
    training_scene,
)
from fyp_jax.synthetic.styles import STYLES

ROBOT = Scene("robot", "desert", "none", "walk", 3)


def bone(points: np.ndarray, a: str, b: str) -> np.ndarray:
    return np.linalg.norm(points[:, JOINTS.index(a), :2] - points[:, JOINTS.index(b), :2], axis=-1)


def test_a_scene_gives_the_same_clip_again_and_each_field_changes_it():
    clip = render_clip(ROBOT, 3)
    assert np.array_equal(clip.video, render_clip(ROBOT, 3).video)
    others = {"character": "panda", "background": "sea", "style": "sunset", "motion": "star", "seed": 4}
    for field, value in others.items():
        other = render_clip(ROBOT._replace(**{field: value}), 3)
        assert not np.array_equal(clip.video, other.video), field


def test_a_longer_clip_begins_as_a_shorter_one():
    assert np.array_equal(render_clip(ROBOT, 6).video[:3], render_clip(ROBOT, 3).video)


def test_the_world_has_what_the_teaser_has():
    assert {"iron man", "hulk", "astronaut", "batman", "superman", "panda", "robot", "stormtrooper"} <= set(
        CHARACTERS
    )
    assert {"beach", "sea", "forest", "snow", "desert", "moon", "street", "simple"} <= set(BACKGROUNDS)
    assert set(STYLES) == {"none", "sunset", "minecraft", "van gogh"}


@pytest.mark.parametrize(
    ("scene", "comma", "text"),
    [
        (ROBOT, True, "A robot, in the desert"),
        (Scene("panda", "sea", "none", "walk", 0), True, "A panda, on the sea"),
        (Scene("man", "park", "van gogh", "walk", 0), False, "A man in the park, Van Gogh style"),
        (Scene("iron man", "simple", "sunset", "walk", 0), False, "Iron man, simple background, at sunset"),
        (Scene("astronaut", "moon", "none", "walk", 0), True, "An astronaut, on the moon"),
    ],
)
def test_captions_are_worded_as_in_the_paper(scene: Scene, comma: bool, text: str):
    assert caption(scene, comma) == text


def test_one_pair_in_eight_and_one_motion_are_held_out():
    assert len(HELD_OUT_PAIRS) == round(len(PAIRS) / 8)
    assert not set(HELD_OUT_PAIRS) & set(TRAIN_PAIRS)
    assert {character for character, _ in TRAIN_PAIRS} == set(CHARACTERS)
    assert {background for _, background in TRAIN_PAIRS} == set(BACKGROUNDS)
    scenes = [training_scene(seed) for seed in range(3000)]
    assert not {(scene.character, scene.background) for scene in scenes} & set(HELD_OUT_PAIRS)
    assert {scene.motion for scene in scenes} == {*MOTIONS, FREE} - {HELD_OUT_MOTION}


@pytest.mark.parametrize("motion", [*MOTIONS, FREE])
def test_bones_keep_their_lengths_and_feet_stay_above_the_ground(motion: str):
    body = Body(0.7, 0.5, 0.9)
    points = keypoints(motion, body, 12, seed=1, side=64)
    for side in ("left", "right"):
        for a, b in (("shoulder", "elbow"), ("elbow", "wrist"), ("hip", "knee"), ("knee", "ankle")):
            lengths = bone(points, f"{side}_{a}", f"{side}_{b}")
            np.testing.assert_allclose(lengths, lengths[0], atol=1e-9, err_msg=f"{motion}: {side} {a}")
    ankles = points[:, [JOINTS.index("left_ankle"), JOINTS.index("right_ankle")], 1]
    assert ankles.max() <= 0.9 * 64 + 1e-9
    moves = np.abs(np.diff(points[..., :2], axis=0)).max()
    assert 0.2 < moves < 16, f"{motion} moves by up to {moves} pixels a frame"


def test_a_persons_left_is_on_the_pictures_right():
    points = keypoints("squat", Body(0.7, 0.5, 0.9), 1, seed=0, side=64)[0]
    for joint in ("shoulder", "hip", "elbow", "eye"):
        assert points[JOINTS.index(f"left_{joint}"), 0] > points[JOINTS.index(f"right_{joint}"), 0]


@pytest.mark.parametrize("character", CHARACTERS)
def test_limbs_are_drawn_where_the_joints_are(character: str):
    scene = Scene(character, "street", "none", "kick", 8)
    clip = render_clip(scene, 2)
    drawn, empty = masks(scene, clip.keypoints), render_background(scene.background, scene.style, scene.seed)
    for frame in range(2):
        x, y = np.clip(np.floor(limb_points(clip.keypoints[frame])).astype(int), 0, 63).T
        assert drawn[frame, y, x].mean() > 0.98
        # elsewhere is the empty place, but for edges, of which the mask has the inner half
        changed = np.abs(clip.video[frame].astype(int) - empty).max(axis=-1) > 0
        assert (changed & ~drawn[frame]).sum() < 0.5 * drawn[frame].sum()
        assert changed[drawn[frame]].mean() > 0.95


def test_every_word_of_every_caption_is_one_token():
    models = PipelineFolder("mini", parts=()).latent_encoders()
    for pair in PAIRS:
        for style in STYLES:
            text = caption(Scene(*pair, style, "walk", 0))
            ids, cut = models.tokenize(text)
            words = re.findall(r"[a-z]+|,", text.lower())
            assert not cut
            tokens = [models.tokenizer.id_to_token(token) for token in ids[0, : 2 + len(words)]]
            assert tokens == ["<|startoftext|>", *(w + "</w>" for w in words), "<|endoftext|>"]
