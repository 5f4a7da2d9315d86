"""Tables and masks of edits against the published code of prompt-to-prompt and FateZero."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from editing_cases import ARRAYS, CASES, TOKENS, blob, prompts, softmax_map, tables
from fyp_jax.editing.masks import blend_latents, word_mask
from fyp_jax.editing.tables import (
    align,
    equalizer,
    refinement,
    replacement_matrix,
    text_tables,
    time_weights,
    window_steps,
)
from fyp_jax.editing.words import TokenizedPrompt, find_words, word_positions
from fyp_jax.errors import UserError

EDITS = sorted(name for name, case in CASES.items() if "steps" in case)
assert len(EDITS) == 9


def prompt(text: str, *strings: str) -> TokenizedPrompt:
    """A prompt whose tokens are its words, or these; equal tokens have equal ids."""
    tokens = strings or tuple(text.split(" "))
    return TokenizedPrompt(text, (1, *(2 + zlib.crc32(x.encode()) for x in tokens), 0), tokens)


@pytest.mark.parametrize("name", EDITS)
def test_tables_equal_the_published_ones(name: str):
    case, ours = CASES[name], tables(CASES[name])
    assert np.array_equal(ours.tau, ARRAYS[f"{name}/cross_alpha"].reshape(ours.tau.shape))
    assert list(window_steps(case["self_replace_steps"], case["num_steps"])) == case["self_steps"]
    if f"{name}/equalizer" in ARRAYS:
        assert np.array_equal(ours.factors, ARRAYS[f"{name}/equalizer"])
    if "refine" in case["kind"]:
        source, *targets = prompts(case)
        mappers = np.stack([refinement(source.ids, target.ids)[0] for target in targets])
        assert np.array_equal(mappers, ARRAYS[f"{name}/mapper"])
        assert np.array_equal(ours.alphas, ARRAYS[f"{name}/alphas"].reshape(ours.alphas.shape))
    elif f"{name}/mapper" in ARRAYS:
        np.testing.assert_allclose(ours.matrices, ARRAYS[f"{name}/mapper"], atol=1e-6)


@pytest.mark.parametrize(
    "name", sorted(x.rpartition("/")[0] for x in ARRAYS if "/cross_" in x and "alpha" not in x)
)
def test_edited_maps_equal_the_published_ones(name: str):
    case, text = CASES[name], tables(CASES[name]).text
    shape = len(case["prompts"]), case["heads"], case["side"] ** 2, TOKENS
    maps = softmax_map(f"{name}/cross", shape)
    for key in (x for x in ARRAYS if x.startswith(f"{name}/cross_") and "alpha" not in x):
        step = int(key.rpartition("_")[2])
        from_source = np.einsum("hqi,kij->khqj", maps[0], text.source_weights[step])
        ours = from_source + maps[1:] * text.own_weights[step][:, None, None]
        np.testing.assert_allclose(ours, ARRAYS[key], atol=1e-6)


@pytest.mark.parametrize("number", range(len(CASES["align"])))
def test_alignment_takes_the_published_way_on_ties(number: int):
    case = CASES["align"][number]
    mapper, alphas = refinement(case["source"], case["target"])
    assert np.array_equal(mapper, ARRAYS[f"align/{number}/mapper"].reshape(-1))
    assert np.array_equal(alphas, ARRAYS[f"align/{number}/alphas"].reshape(-1))


@pytest.mark.parametrize("case", CASES["word_indices"], ids=lambda case: str(case["word"]))
def test_positions_of_a_word_equal_the_published_ones(case: dict):
    tokens = TokenizedPrompt(case["text"], (), tuple(case["token_strings"][1:-1]))
    assert word_positions(tokens, case["word"]) == case["indices"]


def test_alignment_of_equal_prompts_is_the_identity():
    assert align([1, 5, 5, 6, 2], [1, 5, 5, 6, 2]).tolist() == [0, 1, 2, 3, 4]


def test_replacement_of_a_repeated_word_changes_that_occurrence_alone():
    matrix = replacement_matrix(prompt("a cat and a cat"), prompt("a cat and a dog"))
    assert np.array_equal(matrix, np.eye(TOKENS, dtype=np.float32))


def test_replacement_by_a_longer_word_divides_its_maps():
    source, target = prompt("a burger here"), prompt("a lasagne here", "a", "lasag", "ne", "here")
    matrix = replacement_matrix(source, target)
    assert matrix[2, 2] == matrix[2, 3] == 0.5
    assert matrix[4, 4] == 1  # as published: behind the last changed word nothing is shifted back
    assert matrix[:, 1:].sum(axis=0).max() == 1


def test_replacement_needs_as_many_words():
    with pytest.raises(UserError, match=r"has 2 and .* has 3; controller=refine"):
        replacement_matrix(prompt("a cat"), prompt("a big cat"))


def test_windows_have_one_step_more_for_text_than_for_frames():
    tau = time_weights([prompt("a cat")], 0.8, {}, 9)
    assert np.flatnonzero(tau[:, 0, 0]).tolist() == list(range(8))
    assert window_steps(0.8, 9) == (0, 7)


def test_window_of_a_word_counts_at_its_positions_alone():
    target = prompt("a cat, a cat")
    tau = time_weights([target, prompt("a dog")], (0.0, 1.0), {"cat": (0.5, 1.0)}, 9)
    assert tau[0, 0, 4] == 0
    assert tau[5, 0, 4] == 1
    assert tau[0, 0, 2] == tau[0, 1].min() == 1  # "cat," is another word, and the dog has no window


def test_equalizer_of_a_word_by_its_number_leaves_equal_words():
    assert np.flatnonzero(equalizer(prompt("a cat a cat"), {3: 5.0}) != 1).tolist() == [4]


def test_tables_outside_of_the_window_are_neutral():
    ones = np.ones((1, TOKENS), np.float32)
    neutral = text_tables(
        np.eye(TOKENS, dtype=np.float32)[None], ones, 7 * ones, np.zeros((3, 1, TOKENS), np.float32)
    )
    assert not neutral.source_weights.any()
    assert (neutral.own_weights == 1).all()


def test_words_are_found_without_punctuation_and_case():
    tokens = prompt("A robot, on the Beach", "a", "robot", ",", "on", "the", "beach")
    assert find_words(tokens, "Robot beach", "blend_words") == [1, 4]
    with pytest.raises(UserError, match="equalizer: 'panda' is not a word of the prompt"):
        find_words(tokens, "panda", "equalizer")


def test_masks_of_frames_equal_the_published_ones():
    case = CASES["fatezero/mask"]
    side, positions = case["side"], case["source_indices"]
    centres = [np.array(case["centers"]) + i * np.array(case["drift"]) for i in range(case["frames"])]
    bumps = np.stack([blob(side, centre, positions) for centre in centres])[:, None]
    shape = case["frames"], case["heads"], side * side, TOKENS
    layers = [softmax_map(f"fatezero/mask/map{i}", shape, 1.0, bumps) for i in range(5)]
    maps = np.mean([x[..., positions].sum(axis=-1).mean(axis=1) for x in layers], axis=0)
    for to in case["sides"]:
        mask = word_mask(maps.reshape(-1, side, side), to, to, case["th"][0])
        assert np.array_equal(np.asarray(mask), ARRAYS[f"fatezero/mask/mask_{to}"].astype(bool))


def test_mask_takes_each_frames_own_maximum_and_a_strict_threshold():
    maps = np.zeros((2, 4, 4), np.float32)
    maps[0, 0, 0], maps[1, 0, 0], maps[1, 3, 3] = 1, 8, 4
    assert np.asarray(word_mask(maps, 4, 4, 0.5, pool=False)).sum(axis=(1, 2)).tolist() == [1, 1]
    assert np.asarray(word_mask(maps, 4, 4, 0.49, pool=False)).sum(axis=(1, 2)).tolist() == [1, 2]
    assert not np.asarray(word_mask(maps, 4, 4, 1.0)).any()


def test_mask_of_another_shape_takes_the_pixels_that_pytorch_takes():
    torch = pytest.importorskip("torch")
    maps = np.random.default_rng(0).random((2, 6, 10)).astype(np.float32)
    for size in ((3, 5), (12, 20), (4, 7), (9, 9)):
        theirs = torch.nn.functional.interpolate(torch.tensor(maps)[:, None], size=size)[:, 0].numpy()
        theirs = theirs / theirs.max(axis=(1, 2), keepdims=True) > 0.6
        assert np.array_equal(np.asarray(word_mask(maps, *size, 0.6, pool=False)), theirs)


def test_blending_with_an_empty_mask_is_the_background_bit_for_bit():
    z, background = jax.random.normal(jax.random.key(0), (2, 1, 2, 4, 4, 3))
    empty = jnp.zeros((1, 2, 4, 4), bool)
    assert np.array_equal(blend_latents(z, background, empty), background)
    assert np.array_equal(blend_latents(z, background, ~empty), z)


@pytest.mark.parametrize("name", ["p2p/blend_stable", "p2p/blend_null"])
def test_masks_of_a_local_blend_equal_the_published_ones(name: str):
    """Maps of five layers, edited and summed over the steps; the mask is the source's or the target's."""
    case, text = CASES[name], tables(CASES[name]).text
    positions, subtracted, sums = case["word_indices"], case["substruct_indices"], None
    for step in range(case["num_steps"]):
        layers = [layer_maps(f"{name}/{step}/{x}", case) for x in ("down2", "down3", "up0", "up1", "up2")]
        edited = np.stack(layers)
        from_source = np.einsum("nhqi,kij->nkhqj", edited[:, 0], text.source_weights[step])
        edited[:, 1:] = from_source + edited[:, 1:] * text.own_weights[step][:, None, None]
        sums = edited if sums is None else sums + edited
        if f"{name}/mask_{step}" not in ARRAYS:
            continue
        mask = case_mask(sums, positions, case, case["th"][0], pool=True)
        if subtracted is not None:
            mask &= ~case_mask(sums, subtracted, case, case["th"][1], pool=False)
        theirs = ARRAYS[f"{name}/mask_{step}"].astype(bool)[:, 0]
        assert np.array_equal(np.broadcast_to(mask, theirs.shape[-2:]), theirs[-1])


def layer_maps(tag: str, case: dict) -> np.ndarray:
    """The maps of one layer at one step [prompts, heads, 256, tokens]; all prompts have bumps."""

    def maps(tag: str, indices: list, centres: list) -> np.ndarray:
        bumps = np.stack([blob(16, c, x) for c, x in zip(centres, indices, strict=True)])[:, None]
        return softmax_map(tag, (len(indices), case["heads"], 256, TOKENS), 1.0, bumps)

    own = maps(tag, case["word_indices"], case["centers"])
    if case["substruct_indices"] is None:
        return own
    return (own + maps(f"{tag}/sub", case["substruct_indices"], case["sub_centers"])) / 2


def case_mask(sums: np.ndarray, positions: list, case: dict, threshold: float, pool: bool) -> np.ndarray:
    maps = [sums[:, i][..., x].sum(axis=-1).mean(axis=(0, 1)) for i, x in enumerate(positions)]
    size = case["latent"]
    mask = word_mask(np.stack(maps).reshape(-1, 16, 16), size, size, threshold, pool)
    return np.asarray(mask).any(axis=0)
