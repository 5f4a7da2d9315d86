"""The mini world's exam: what is asked, how it is scored, and what it means to take a part away."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from PIL import Image

import tiny_models
from fyp_jax.evaluation import exam, report, ways
from fyp_jax.models.attention import CrossFrameAttention
from fyp_jax.models.random_params import random_params
from fyp_jax.models.unet import UNet3D, unet_shapes
from fyp_jax.synthetic.motions import HELD_OUT_MOTION
from fyp_jax.synthetic.scenes import HELD_OUT_PAIRS, TRAIN_PAIRS, render_frames
from fyp_jax.synthetic.styles import STYLES


def test_questions_are_of_the_held_out_motion_and_of_the_pairs_asked_for():
    for held_out, pairs in ((False, TRAIN_PAIRS), (True, HELD_OUT_PAIRS)):
        asked = exam.make_eval_cases(8, 2, held_out)
        assert {(q.scene.character, q.scene.background) for q in asked} <= set(pairs)
        assert {q.scene.motion for q in asked} == {HELD_OUT_MOTION}
        assert {q.scene.style for q in asked} == set(STYLES)
        assert len({q.scene.seed for q in asked}) == 8


def test_the_worlds_own_drawings_pass_and_noise_fails():
    asked = exam.make_eval_cases(4, 2, False)
    drawn = [render_frames(question.scene, question.keypoints) for question in asked]
    noise = [np.random.default_rng(i).integers(0, 256, x.shape).astype(np.uint8) for i, x in enumerate(drawn)]
    good, bad = (exam.score(clips, asked, lambda video: video.astype(np.float32)) for clips in (drawn, noise))
    assert good.pose_accuracy.mean > 0.97
    assert good.character.mean == good.background.mean == good.style.mean == 1
    assert good.flicker.mean == 0
    assert bad.iou.mean < good.iou.mean - 0.35
    assert bad.flicker.mean > 50
    table = list(report.rows({"drawn": good, "noise": bad}))
    assert len(table) == 4
    assert {row.count("|") for row in table} == {len(exam.Scores._fields) + 2}


def test_without_cross_frame_attention_frames_read_themselves_alone():
    x = jax.random.normal(jax.random.key(0), (1, 3, 4, 8))
    together, apart = (CrossFrameAttention(2, 8, cross_frame=cross) for cross in (True, False))
    params = together.init(jax.random.key(1), x)
    other = x.at[:, 0].add(1.0)
    changed = [
        np.abs(module.apply(params, x) - module.apply(params, other)).max((0, 2, 3))
        for module in (together, apart)
    ]
    assert (changed[0] > 0.01).all(), "every frame reads frame 0"
    assert changed[1][0] > 0.01
    assert not changed[1][1:].any()
    alone = jnp.concatenate([apart.apply(params, x[:, i : i + 1]) for i in range(3)], axis=1)
    np.testing.assert_allclose(apart.apply(params, x), alone, atol=1e-6)


def test_without_temporal_layers_and_cross_frame_attention_frames_meet_in_norms_alone():
    """Two equal frames and no norm that tells them apart: each is what it is on its own."""
    params = random_params(unet_shapes(tiny_models.UNET), seed=0)
    silent = ways.without_temporal_layers(params)
    assert {path for path, x in flatten_dict(silent, sep="/").items() if not np.any(x)} >= {
        path for path in flatten_dict(params, sep="/") if "conv_temporal/up" in path
    }
    config = dataclasses.replace(tiny_models.UNET, cross_frame_attention=False)
    frame = jax.random.normal(jax.random.key(2), (1, 1, 8, 8, 4))
    text = jax.random.normal(jax.random.key(3), (1, 5, 8))

    @jax.jit
    def run(params: dict, clip: jax.Array) -> jax.Array:
        return UNet3D(config).apply({"params": params}, clip, jnp.array([500]), text)

    one, two = run(silent, frame), run(silent, jnp.concatenate([frame, frame], axis=1))
    np.testing.assert_allclose(two, jnp.concatenate([one, one], axis=1), atol=1e-4)
    with_time = run(params, jnp.concatenate([frame, frame], axis=1))
    assert np.abs(with_time - two).max() > 0.01


def test_before_the_motion_stage_the_queries_are_the_image_models():
    params = {"unet": random_params(unet_shapes(tiny_models.UNET), seed=0)}
    image = {
        "down_blocks_0": {
            "attentions_0": {"transformer_blocks_0": {"attn1": {"to_q": {"kernel": jnp.ones((16, 16))}}}}
        }
    }
    before = ways.before_motion_stage(params, image)["unet"]
    block = before["down_blocks_0"]["attentions_0"]["transformer_blocks_0"]
    assert (block["attn1"]["to_q"]["kernel"] == 1).all()
    assert not np.any(block["conv_temporal"]["up"]["kernel"])
    assert np.any(block["attn2"]["to_q"]["kernel"])


def test_figures_show_every_way(tmp_path: Path):
    asked = exam.make_eval_cases(2, 2, False)
    drawn = [render_frames(question.scene, question.keypoints) for question in asked]
    scores = exam.score(drawn, asked, lambda video: video.astype(np.float32))
    sizes = []
    for count in (2, 5):
        names = [f"way {i}" for i in range(count)]
        report.draw_scores(dict.fromkeys(names, scores), tmp_path / "scores.png")
        report.draw_clips(dict.fromkeys(names, drawn), tmp_path / "clips.png", 2)
        sizes.append([Image.open(tmp_path / f"{name}.png").height for name in ("scores", "clips")])
    assert (np.array(sizes[1]) > sizes[0]).all(), "a row for each"
