"""Whole edits on a tiny UNet: 9 steps, 3 frames, latents of 8x12; what must hold for any model."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from editing_by_maps import Case, edit_by_maps

from conftest import tagged
from editing_cases import TOKENS, editor
from fyp_jax.diffusion import ddim
from fyp_jax.diffusion.schedule import ScheduleConfig
from fyp_jax.editing.inversion import Inversion
from fyp_jax.editing.options import EditOptions
from fyp_jax.editing.plan import EditPlan, make_plan
from fyp_jax.editing.prompt_options import options_of_prompt
from fyp_jax.editing.words import TokenizedPrompt
from fyp_jax.models.attention_edit import AttentionEdit
from fyp_jax.models.random_params import random_params
from fyp_jax.models.unet import UNet3D, unet_shapes
from fyp_jax.pipeline import clip_editor
from fyp_jax.pipeline.clip_editor import EditRun
from fyp_jax.pipeline.editing import tokenize_prompt
from fyp_jax.pipeline.guidance import cfg_denoiser
from tiny_models import UNET, encoders

STEPS, GUIDANCE, THRESHOLD = 9, 3.0, 0.95
SHAPE = (1, 3, 8, 12, 4)
LEVELS = len(UNET.block_out_channels)
SOURCE, TARGETS = "a cat and a cat on grass", ("a dog and a cat on grass", "a big cat and a bird on sand")
HIGHEST: dict[str, Any] = {"self_level": 0, "map_level": 0}


@pytest.fixture(scope="module")
def unet() -> tuple[UNet3D, dict]:
    return UNet3D(UNET), random_params(unet_shapes(UNET), seed=0)


@functools.cache
def tokens(text: str) -> TokenizedPrompt:
    """Words of several tokens: the tiny tokenizer knows letters."""
    return tokenize_prompt(encoders(), text)


def embedding(text: str) -> np.ndarray:
    return tagged(f"properties/{text}", (1, TOKENS, UNET.cross_attention_dim))


def embeddings(*texts: str) -> jax.Array:
    return jnp.asarray(np.concatenate([embedding(text) for text in texts]))


@pytest.fixture(scope="module")
def inversion(unet: tuple[UNet3D, dict]) -> Inversion:
    z = 0.5 * jnp.asarray(tagged("properties/latents", SHAPE))
    run = editor(*unet, num_inference_steps=STEPS).invert(z, tokens(SOURCE), embeddings(SOURCE), None, 0)
    return Inversion(*run, SOURCE, {})


def plan_of(*targets: str, **options: Any) -> EditPlan:
    prompts = [tokens(text) for text in targets]
    return make_plan(EditOptions(**HIGHEST | options), tokens(SOURCE), prompts, STEPS, LEVELS, TOKENS)


def run_edit(
    unet: tuple[UNet3D, dict],
    inversion: Inversion,
    plan: EditPlan,
    *targets: str,
    guidance_scale: float = GUIDANCE,
) -> EditRun:
    """The edit of a plan; one without a clip starts from the inversion's noise."""
    generated = plan.options.method == "generate"
    return editor(*unet, num_inference_steps=STEPS, guidance_scale=guidance_scale).edit(
        plan,
        embeddings(SOURCE, *targets),
        embeddings(""),
        None,
        None if generated else inversion,
        jnp.asarray(inversion.noise)[None] if generated else None,
    )


def sample(unet: tuple[UNet3D, dict], noise: np.ndarray, text: str, guidance: float) -> np.ndarray:
    """Plain sampling by DDIM, step by step: the latents of all steps, [steps + 1, f h w c]."""
    table, z = ddim.make_ddim_schedule(ScheduleConfig(), STEPS), jnp.asarray(noise)[None]
    trajectory = [z]
    for index in range(STEPS):
        z = _sample_step(unet[0], unet[1], z, index, embeddings(text), embeddings(""), guidance, table)
        trajectory.append(z)
    return np.concatenate(trajectory)


@functools.partial(jax.jit, static_argnames=("unet",))
def _sample_step(
    unet: UNet3D, params: Any, z: jax.Array, index: Any, text: Any, negative: Any, scale: Any, table: Any
) -> jax.Array:
    denoise = cfg_denoiser(unet, params, text, negative, None, scale)
    return ddim.step(denoise, z, index, table, ScheduleConfig())


def relative_error(ours: Any, theirs: Any) -> float:
    return float(np.abs(np.asarray(ours) - np.asarray(theirs)).max() / np.abs(theirs).max())


EVERYTHING = {"cross_replace_steps": 1.0, "self_replace_steps": 1.0}
NOTHING = {"cross_replace_steps": 0.0, "self_replace_steps": 0.0}
# Each compiles programs of its own.
METHODS = ["p2p", "fatezero", pytest.param("generate", marks=pytest.mark.release)]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_edit_of_two_targets_equals_the_edit_of_attention_maps(
    unet: tuple[UNet3D, dict], inversion: Inversion, method: str
):
    words = ["cat", "dog and", "bird"]
    own = method == "fatezero"
    plan = plan_of(
        *TARGETS,
        method=method,
        cross_replace_steps=0.5,
        self_replace_steps=0.6,
        equalizer=["bird=3"],
        word_replace_steps=["cat=0.5"],
        blend_words=words,
        blend_latents=True,
        blend_self_attention=own,
        blend_threshold=THRESHOLD,
    )
    ours = run_edit(unet, inversion, plan, *TARGETS)
    assert plan.words is not None
    case = Case(
        method,
        STEPS,
        (plan.text.source_weights, plan.text.own_weights),
        0.6,
        plan.words[..., 0],
        THRESHOLD,
        GUIDANCE,
        own,
    )
    text = np.asarray(embeddings(SOURCE, *TARGETS))
    theirs, masks = edit_by_maps(case, UNET, unet[1], inversion.latents, text, embedding(""))
    assert 0.05 < np.mean(masks) < 0.95
    assert len({mask.tobytes() for mask in masks}) > 2
    found = np.concatenate([ours.source[None], ours.z]) if method == "generate" else ours.z
    assert relative_error(found, theirs) < 1e-4


@pytest.mark.slow
def test_neutral_edit_is_the_edit_that_touches_nothing_bit_for_bit(
    unet: tuple[UNet3D, dict], inversion: Inversion, monkeypatch: pytest.MonkeyPatch
):
    plan = plan_of(TARGETS[0], method="p2p", **NOTHING)
    assert not any(plan.level_edits(step, {}) for step in range(STEPS))
    nothing = run_edit(unet, inversion, plan, TARGETS[0])
    neutral = AttentionEdit(
        np.zeros((1, TOKENS, TOKENS), np.float32),
        np.ones((1, TOKENS), np.float32),
        np.ones((1, SHAPE[1], 1), bool),
    )
    edits = dict.fromkeys(range(LEVELS), neutral)
    monkeypatch.setattr(EditPlan, "level_edits", lambda *_: edits)
    assert np.array_equal(run_edit(unet, inversion, plan, TARGETS[0]).z, nothing.z)


@pytest.mark.slow
def test_edit_that_takes_nothing_is_plain_sampling_from_the_inverted_noise(
    unet: tuple[UNet3D, dict], inversion: Inversion
):
    found = run_edit(unet, inversion, plan_of(TARGETS[0], method="p2p", **NOTHING), TARGETS[0])
    assert relative_error(found.z[0], sample(unet, inversion.noise, TARGETS[0], GUIDANCE)[-1]) < 1e-5


@pytest.mark.slow
def test_source_prompt_with_everything_replaced_is_the_inversions_way_back(
    unet: tuple[UNet3D, dict], inversion: Inversion
):
    """Without guidance. The source's row has the latents of the inversion, which the way back leaves by the
    error of DDIM's steps alone; where it has those of the way back, nothing is left of the difference."""
    back = sample(unet, inversion.noise, SOURCE, 1.0)
    plan = plan_of(SOURCE, method="p2p", **EVERYTHING)
    same = dataclasses.replace(inversion, latents=np.concatenate([back[-2::-1], back[:1]]))
    found = run_edit(unet, same, plan, SOURCE, guidance_scale=1.0)
    assert relative_error(found.z[0], back[-1]) < 1e-5
    near = run_edit(unet, inversion, plan, SOURCE, guidance_scale=1.0)
    drift = np.abs(inversion.latents[::-1] - back).max()
    assert np.abs(near.z[0] - back[-1]).max() < drift
    generated = run_edit(unet, inversion, plan_of(SOURCE, method="generate", **EVERYTHING), SOURCE)
    np.testing.assert_allclose(generated.z[0], generated.source, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_latents_are_the_sources_where_the_mask_is_empty(
    unet: tuple[UNet3D, dict], inversion: Inversion, monkeypatch: pytest.MonkeyPatch, method: str
):
    """A threshold of 1 leaves an empty mask. FateZero's source is one level noisier, and ends early."""
    states, step = [], clip_editor.edit_step

    def recorded(*args: Any) -> Any:
        states.append(step(*args))
        return states[-1]

    monkeypatch.setattr(clip_editor, "edit_step", recorded)
    words = {"blend_words": ["cat", "dog", "bird"], "blend_latents": True, "blend_threshold": 1.0}
    plan = plan_of(*TARGETS, method=method, cross_replace_steps=0.5, self_replace_steps=0.6, **words)
    found = run_edit(unet, inversion, plan, *TARGETS)
    kept = [index for index in range(STEPS) if plan.keeps_latents(index)]
    assert kept == (list(range(1, 6)) if method == "fatezero" else list(range(1, STEPS)))
    for index, state in enumerate(states):
        level = -1 - index if method == "fatezero" else -2 - index
        source = state.z[0] if method == "generate" else inversion.latents[level]
        for target in state.z[-len(TARGETS) :]:
            assert np.array_equal(target, source) == (index in kept)
    assert np.array_equal(found.z[0], found.source) == (method != "fatezero")


@pytest.mark.slow
def test_two_targets_in_one_call_are_each_alone(unet: tuple[UNet3D, dict], inversion: Inversion):
    both = {
        "method": "p2p",
        "cross_replace_steps": 0.5,
        "self_replace_steps": 0.6,
        "equalizer": ["bird=3", "dog=2"],
        "word_replace_steps": ["sand=0.2:0.9"],
        "blend_words": ["cat", "dog", "bird"],
        "blend_latents": True,
        "blend_threshold": THRESHOLD,
    }
    plan = plan_of(*TARGETS, **both)
    together = run_edit(unet, inversion, plan, *TARGETS)
    prompts = [tokens(text) for text in TARGETS]
    for number, text in enumerate(TARGETS):
        own = options_of_prompt(plan.options, prompts, number)
        alone = run_edit(unet, inversion, plan_of(text, **dataclasses.asdict(own)), text)
        assert relative_error(together.z[number], alone.z[0]) < 1e-5
    assert relative_error(together.z[0], together.z[1]) > 0.01


def test_options_of_a_prompt_are_those_of_its_words():
    options = EditOptions(
        equalizer=["bird=3", "dog=2", "grass=4"],
        word_replace_steps=["sand=0.9", "zebra=0.1"],
        blend_words=["cat", "dog", "bird"],
    )
    prompts = [tokens(text) for text in TARGETS]
    first, second = (options_of_prompt(options, prompts, number) for number in (0, 1))
    assert (first.equalizer, second.equalizer) == (["dog=2", "grass=4"], ["bird=3"])
    assert (first.blend_words, second.blend_words) == (["cat", "dog"], ["cat", "bird"])
    # What no prompt has is refused by the plan.
    assert (first.word_replace_steps, second.word_replace_steps) == (["zebra=0.1"], ["sand=0.9", "zebra=0.1"])


def filled(words: list[str], length: int) -> str:
    """A prompt of so many tokens, with a start and an end token: letters are tokens of the tiny tokenizer."""
    text = " ".join(words)
    while len(tokens_of(text).ids) < length:
        text += " a"
    return text


def tokens_of(text: str) -> TokenizedPrompt:
    return tokenize_prompt(encoders(), text)


@pytest.mark.parametrize("controller", ["replace", "refine"])
def test_prompts_that_fill_all_tokens_have_whole_tables(controller: str):
    """Of 77 tokens, the last is the end token; a word at the end has its positions before it."""
    source, target = tokens_of(filled(["cat"], TOKENS)), tokens_of(filled(["dog"], TOKENS))
    assert len(source.ids) == len(target.ids) == TOKENS
    last = target.words[-1]
    options = EditOptions(
        method="p2p", controller=controller, cross_replace_steps=1.0, equalizer=[f"{last}=2"]
    )
    plan = make_plan(options, source, [target], STEPS, LEVELS, TOKENS)
    a, b = plan.text.source_weights[0, 0], plan.text.own_weights[0, 0]
    assert a.shape == (TOKENS, TOKENS)
    # Each token of the target reads as much attention as its factor says, from the source or its own.
    total = a.sum(axis=0) + b
    assert total[0] == total[-1] == 1
    assert total[-2] == 2
