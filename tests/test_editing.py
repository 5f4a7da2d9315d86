"""Edits of whole clips: against the published code on a small model, and what a user can rely on."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cli_utils import SCRIPTS, assert_mistake, run_script
from conftest import FIXTURES, channels_last, synthetic_model, tagged
from editing_cases import ARRAYS, CASES, editor, prompt, prompts, tables
from fyp_jax.cli.edit import parse
from fyp_jax.diffusion.schedule import ScheduleConfig
from fyp_jax.editing.inversion import Inversion
from fyp_jax.editing.null_text import null_text_step
from fyp_jax.editing.options import EditOptions
from fyp_jax.editing.plan import EditPlan, make_plan
from fyp_jax.editing.steps import Denoiser
from fyp_jax.errors import UserError
from fyp_jax.models.unet import UNet3D, UNet3DConfig
from fyp_jax.pipeline.editing import tokenize_prompt
from fyp_jax.pipeline.pipeline import FollowYourPosePipeline
from tiny_models import encoders

STEPS, TOKENS = 5, 77
EDIT = SCRIPTS / "edit.py"
EDITS = sorted(name for name in CASES if name.startswith("edit/") and name != "edit/null_text")
OFTEN = {"edit/fatezero_replace", "edit/p2p_blend", "edit/p2p_replace"}
"""Edits that CI compares; the others take a minute each, too."""


@pytest.fixture(scope="module")
def model() -> tuple[UNet3D, dict]:
    layout = json.loads((FIXTURES / "small_layout.json").read_text())
    params = synthetic_model(UNet3DConfig(**layout["config"]), layout["state_dict"])["unet"]
    return UNet3D(UNet3DConfig(**CASES["edit"]["config"])), params


def text(name: str) -> jax.Array:
    return jnp.asarray(tagged(f"edit/text/{name}", (1, TOKENS, 32)))


@pytest.fixture(scope="module")
def inversion(model: tuple[UNet3D, dict]) -> Inversion:
    z = 0.5 * jnp.asarray(channels_last(tagged("edit/sample", (1, 4, 3, 16, 16))))
    source = prompts(CASES["edit/fatezero_replace"])[0]
    latents, maps = editor(*model).invert(z, source, text("source"), None, 2)
    return Inversion(latents, maps, source.text, {})


def relative_error(ours: Any, theirs: np.ndarray) -> float:
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


@pytest.mark.slow
def test_inversion_equals_the_published_one(inversion: Inversion):
    assert relative_error(inversion.noise[None], channels_last(ARRAYS["edit/inversion/latents"])) < 1e-4


def case_options(case: dict[str, Any]) -> EditOptions:
    """The options of a published case, at the levels that its model has."""
    windows = case["cross_replace_steps"]
    windows = dict(windows) if isinstance(windows, dict) else {"default_": windows}
    weights, fatezero = case["eq_params"] or {"words": [], "values": []}, case["what"] == "fatezero"
    thresholds = case["blend_th"] if fatezero else case["th"]
    return EditOptions(
        method="fatezero" if fatezero else "generate",
        controller=case["kind"].split("+")[0],
        cross_replace_steps=windows.pop("default_"),
        word_replace_steps=[f"{word}={end}" for word, end in windows.items()],
        self_replace_steps=case["self_replace_steps"],
        equalizer=[f"{a}={b}" for a, b in zip(weights["words"], weights["values"], strict=True)],
        blend_words=[words[0] for words in blend_words(case)],
        blend_threshold=thresholds[0] if thresholds else 0.3,
        blend_self_attention=bool(fatezero and case["blend_self_attention"] and case["word_indices"]),
        blend_latents=bool(case["blend_latents"] if fatezero else case["word_indices"]),
        self_level=1 if fatezero or case["self_limit"] == 64 else 2,
    )


def blend_words(case: dict[str, Any]) -> list[list[str]]:
    """The blend words of a case by their positions: each is one word of one token."""
    pairs = zip(case["token_strings"], case["word_indices"] or (), strict=False)
    return [[strings[i] for i in positions] for strings, positions in pairs]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.release] * (name not in OFTEN)) for name in EDITS]
)
def test_edit_equals_the_published_one(model: tuple[UNet3D, dict], inversion: Inversion, name: str):
    case, fatezero = CASES[name], CASES[name]["what"] == "fatezero"
    source, target = prompts(case)
    plan = make_plan(case_options(case), source, [target], STEPS, 4, TOKENS)
    np.testing.assert_allclose(plan.text.source_weights, tables(case).text.source_weights, atol=1e-6)
    embedding = text("source" if source.text == target.text else case["kind"].split("+")[0])
    noise = jnp.asarray(channels_last(tagged("edit/sample", (1, 4, 3, 16, 16))))
    run = editor(*model, guidance_scale=case["guidance"]).edit(
        plan,
        jnp.concatenate([text("source"), embedding]),
        text("uncond"),
        None,
        inversion if fatezero else None,
        noise,
    )
    theirs = channels_last(ARRAYS[f"{name}/latents"])
    ours = run.z if fatezero else np.concatenate([run.source[None], run.z])
    assert relative_error(ours, theirs) < 1e-4


@pytest.mark.release
def test_null_text_inversion_equals_the_published_one(model: tuple[UNet3D, dict], inversion: Inversion):
    case, (unet, params) = CASES["edit/null_text"], model
    denoiser = Denoiser(unet, ScheduleConfig(), STEPS)
    z, embedding, losses = jnp.asarray(inversion.noise)[None], text("uncond"), []
    for index in range(STEPS):
        target = jnp.asarray(inversion.latents[-2 - index])[None]
        args = np.int32(index), target, text("source"), None, jnp.float32(case["guidance"])
        step = null_text_step(denoiser, params, z, embedding, *args, case["inner_steps"])
        z, embedding = step.z, step.embedding
        losses += [x for x in np.asarray(step.losses) if x]
    assert relative_error(z, channels_last(ARRAYS["edit/null_text/final"])) < 1e-4
    np.testing.assert_allclose(losses, ARRAYS["edit/null_text/losses"].reshape(-1), rtol=1e-3)


def test_generated_source_and_equal_prompt_give_the_same_clip():
    """The source prompt as target, with everything replaced, is the source itself."""
    config, options = (
        EditOptions(method="generate", cross_replace_steps=1.0, self_replace_steps=1.0),
        prompt("a cat"),
    )
    plan = make_plan(config, options, [options], STEPS, 2, TOKENS)
    assert np.array_equal(
        plan.text.source_weights[:, 0], np.broadcast_to(np.eye(TOKENS), (STEPS, TOKENS, TOKENS))
    )
    assert not plan.text.own_weights.any()
    assert all(plan.self_replaced(step) for step in range(STEPS))


def a_plan(**options: Any) -> EditPlan:
    source, target = prompt("a cat on grass"), prompt("a dog on grass")
    return make_plan(EditOptions(**options), source, [target], 10, 3, TOKENS)


def test_latents_are_kept_in_the_published_steps():
    words = {"blend_words": ["cat", "dog"], "blend_latents": True}
    fatezero = a_plan(method="fatezero", **words)
    assert [step for step in range(10) if fatezero.keeps_latents(step)] == [2, 3, 4, 5, 6]
    p2p = a_plan(method="p2p", **words)
    assert [step for step in range(10) if p2p.keeps_latents(step)] == list(range(2, 10))


def test_text_is_edited_at_the_levels_of_the_method_and_in_its_window_alone():
    fatezero, p2p = a_plan(cross_replace_steps=0.5), a_plan(method="p2p", cross_replace_steps=0.5)
    assert sorted(fatezero.level_edits(0, {})) == [1, 2]
    assert sorted(p2p.level_edits(0, {})) == [0, 1, 2]
    assert p2p.level_edits(9, {}) == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"controller": "reweight"}, "is for equal prompts"),
        ({"blend_words": ["bird"]}, "blend_words: 'bird' is not a word of the prompt 'a cat on grass'"),
        ({"equalizer": ["bird=2"]}, "equalizer: 'bird' is not a word of the prompt 'a dog on grass'"),
        ({"word_replace_steps": ["bird=0.2"]}, "word_replace_steps: 'bird' is not a word"),
        ({"equalizer": ["dog"]}, "not of the form WORDS=NUMBER"),
        ({"self_replace_start": 0.5, "self_replace_steps": 0.55}, "has no step of num_inference_steps=10"),
        ({"cross_replace_start": 0.9, "cross_replace_steps": 0.5}, "this window is empty"),
        ({"self_level": 3}, "self_level=3: this model has levels 0 to 2"),
        ({"blend_latents": True}, "needs blend_words"),
        ({"method": "pix2pix"}, "method=pix2pix is none of fatezero, p2p, generate"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        a_plan(**options)


def test_replace_names_both_word_counts_and_refine_takes_them():
    source, target = prompt("a cat"), prompt("a big cat")
    with pytest.raises(UserError, match=r"'a cat' has 2 and 'a big cat' has 3; controller=refine"):
        make_plan(EditOptions(controller="replace"), source, [target], 10, 3, TOKENS)
    for controller in ("auto", "refine"):
        make_plan(EditOptions(controller=controller), source, [target], 10, 3, TOKENS)


def test_tokens_of_a_prompt_cover_it_also_where_a_character_has_several():
    for text in ("a  robot,  on the beach", "un café à la plage", "a 猫 and 😀 faces"):
        tokens = tokenize_prompt(encoders(), text)
        assert tokens.text == " ".join(text.split())
        assert "".join(tokens.strings) == tokens.text.replace(" ", "")
        assert len(tokens.ids) == len(tokens.strings) + 2


def test_prompt_over_the_text_encoders_tokens_is_refused():
    with pytest.raises(UserError, match="tokens, more than 77: shorten it"):
        tokenize_prompt(encoders(), "robot " * 80)


def an_inversion() -> Inversion:
    rng = np.random.default_rng(0)
    latents, maps = rng.random((4, 2, 4, 6, 4), np.float32), rng.random((3, 2, 2, 3, 5), np.float32)
    return Inversion(latents, maps, "a cat", {"weights": 7, "num_inference_steps": 3})


def test_saved_inversion_is_read_again_bit_for_bit(tmp_path: Path):
    before = an_inversion()
    after = Inversion.load(before.save(tmp_path / "clip.npz"))
    assert np.array_equal(before.latents, after.latents)
    assert np.array_equal(before.word_maps, after.word_maps)
    assert (after.prompt, after.made_for) == (before.prompt, before.made_for)
    with pytest.raises(UserError, match="was made for weights=7, not 8; invert the clip again"):
        after.check_made_for({"weights": 8}, "clip.npz")


def test_other_and_damaged_files_are_no_inversion(tmp_path: Path):
    whole = an_inversion().save(tmp_path / "clip.npz").read_bytes()
    np.savez(tmp_path / "other.npz", latents=np.zeros(3))
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.npz").write_text("no arrays")
    for name in ("other", "cut", "text"):
        with pytest.raises(UserError, match="is no inversion that this package saved"):
            Inversion.load(tmp_path / f"{name}.npz")
    with pytest.raises(UserError, match="no such file"):
        Inversion.load(tmp_path / "none.npz")


def test_word_map_counts_steps_from_the_noisy_side():
    inversion, words = an_inversion(), np.zeros((TOKENS, 1), np.float32)
    words[[1, 3]] = 1
    expected = inversion.word_maps[0][..., [1, 3]].sum(axis=-1)
    np.testing.assert_allclose(inversion.word_map(2, words), expected, rtol=1e-6)


def test_command_line_options_become_config_fields():
    config = parse(
        ["--keep-background", "robot", "panda", "--emphasise", "panda=3", "--prompt", "A panda", "seed=4"]
    )
    assert (config.edit.blend_words, config.edit.equalizer) == (["robot", "panda"], ["panda=3"])
    assert config.edit.blend_latents
    assert (config.prompt, config.seed) == (["A panda"], 4)
    assert parse(["--method", "generate"]).video is None


def test_fields_behind_words_are_fields_and_words_of_the_prompt_are_words():
    config = parse(
        [
            "--keep-background",
            "robot",
            "panda",
            "edit.blend_threshold=0.5",
            "--emphasise",
            "panda=3",
            "seed=4",
        ]
    )
    assert (config.edit.blend_words, config.edit.equalizer) == (["robot", "panda"], ["panda=3"])
    assert (config.edit.blend_threshold, config.seed) == (0.5, 4)
    config = parse(["--prompt", "A robot and a seed", "--emphasise", "seed=4"])
    assert (config.edit.equalizer, config.seed) == (["seed=4"], 0)


def test_source_pose_of_a_bundled_clip_is_that_of_the_frames_that_are_taken():
    config = parse(["num_frames=2", "video_start=4", "video_stride=2"])
    assert (config.source_pose.start, config.source_pose.stride) == (4, 2)
    config = parse(["num_frames=2", "video_start=4", "source_pose.start=1"])
    assert (config.source_pose.start, config.source_pose.stride) == (1, 1)


@pytest.mark.parametrize("kind", ["style", "attribute", "shape"])
def test_published_configs_are_read(kind: str):
    config = parse(
        ["--config", f"configs/sd14/edit_{kind}.yaml", "--video", "a.mp4", "--source", "a", "--prompt", "b"]
    )
    assert (config.edit.method, config.guidance_scale, config.num_inference_steps) == ("fatezero", 7.5, 50)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["source="], "the source prompt is empty"),
        (["video=null"], "there is no clip: give --video FILE"),
        (["--video", "missing.mp4"], "missing.mp4: no such file"),
        (["num_frames=16"], "num_frames=16"),
        (["eta=0.5"], "needs eta=0"),
        (["solver=unipc"], "solver=unipc: an edit is made by DDIM"),
        (["timestep_spacing=trailing"], "timestep_spacing=trailing: an edit is made by DDIM"),
        (["window=4"], "window=4: an edit is made by DDIM, all frames together"),
        (["num_frames=12", "mesh.frame=8"], "num_frames=12 is not a multiple of mesh.frame=8"),
        (["num_frames=24", "mesh.data=4"], "mesh.data=4 mesh.fsdp=1 mesh.frame=1: sampling takes"),
        (["--emphasise", "panda"], "not of the form WORDS=NUMBER"),
        (["edit.method=generate"], "exclude each other"),
        (["edit.cross_replace_steps=1.5"], "fractions of the steps are between 0 and 1"),
    ],
)
def test_mistake_is_told_before_a_model_is_loaded(
    args: list[str], message: str, monkeypatch: pytest.MonkeyPatch
):
    def loaded(*_: Any) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("fyp_jax.pipeline.pipeline.load_components", loaded)
    assert_mistake(run_script(EDIT, *args), message)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--keep-background", "zebra"],
            "blend_words: 'zebra' is not a word of the prompt 'A robot, on the beach'",
        ),
        (["num_inference_steps=5000"], "num_inference_steps=5000"),
    ],
)
def test_what_the_model_cannot_take_is_told_before_the_first_step(
    args: list[str], message: str, tmp_path: Path
):
    assert_mistake(run_script(EDIT, *args, "--out", tmp_path / "runs"), message)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"solver": "unipc"}, "solver=unipc: an edit is made by DDIM"),
        ({"window": 4}, "window=4: an edit is made by DDIM, all frames together"),
        ({"eta": 1.0}, "eta=1.0: an edit takes the steps of its source"),
    ],
)
def test_edit_in_python_refuses_what_it_would_not_follow(changes: dict, message: str):
    pipeline = FollowYourPosePipeline.from_pretrained("mini")
    with pytest.raises(UserError, match=message):
        pipeline.edit(None, "A robot", "A panda", EditOptions(method="generate"), num_frames=2, **changes)
