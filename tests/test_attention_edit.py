"""Edits of attention against plain maps, and what they leave alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from conftest import slow
from fyp_jax.models.attention import Attention, CrossFrameAttention
from fyp_jax.models.attention_edit import WORDS, AttentionEdit, word_maps
from fyp_jax.models.execution import ExecutionConfig
from fyp_jax.models.random_params import random_params
from fyp_jax.models.unet import UNet3D, unet_shapes
from tiny_models import UNET

pytestmark = pytest.mark.slow  # seconds each; .ci/run runs them

HEADS, WIDTH, TOKENS, TARGETS = 2, 8, 6, 2
ROWS = 2 + TARGETS  # one that no edit touches, the source, and its targets
RNG = np.random.default_rng(0)


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


def softmax_maps(layer: Attention, params: dict, x: jax.Array, context: jax.Array) -> tuple:
    """The maps [b h n m] and values [b h m d] of an attention, all at once."""

    def split(name: str, x: jax.Array) -> jax.Array:
        return rearrange(x @ params[name]["kernel"], "b n (h d) -> b h n d", h=HEADS)

    q, k, v = split("to_q", x), split("to_k", context), split("to_v", context)
    return jax.nn.softmax(q @ k.swapaxes(2, 3) / (WIDTH // HEADS) ** 0.5, axis=-1), v


def project(params: dict, maps: jax.Array, values: jax.Array) -> jax.Array:
    out = rearrange(maps @ values, "b h n d -> b n (h d)")
    return out @ params["to_out_0"]["kernel"] + params["to_out_0"]["bias"][None, None]


def test_text_edit_equals_the_edit_of_the_maps():
    layer, x, text = Attention(HEADS, WIDTH), normal(ROWS, 10, WIDTH), normal(ROWS, TOKENS, 5)
    variables = layer.init(jax.random.key(0), x, text)
    a, b, words = normal(TARGETS, TOKENS, TOKENS), normal(TARGETS, TOKENS), normal(1 + TARGETS, TOKENS, 7)
    edit = AttentionEdit(a, b, words=words, source_words=a @ words[1:])
    edit = edit._replace(words=words.at[1:].multiply(b[:, :, None]))
    ours, left = layer.apply(variables, x, text, edit, mutable=[WORDS])

    maps, values = softmax_maps(layer, variables["params"], x, text)
    edited = jnp.einsum("hni,kij->khnj", maps[-3], a) + maps[-2:] * b[:, None, None]
    maps = jnp.concatenate([maps[:-2], edited])
    np.testing.assert_allclose(ours, project(variables["params"], maps, values), atol=1e-5)
    # Seven sets of words are more than a head has channels, so that they take two rows each.
    read = jnp.einsum("rhnl,rlm->rnm", maps[-3:], words) / HEADS
    np.testing.assert_allclose(word_maps(left[WORDS], 1, 2, 5).reshape(3, 10, 7), read, atol=1e-5)


@pytest.mark.parametrize("cross_frame", [True, False])
def test_frame_edit_equals_the_edit_of_the_maps(cross_frame: bool):
    frames, tokens = 3, 5
    layer = CrossFrameAttention(HEADS, WIDTH, cross_frame=cross_frame)
    x = normal(ROWS, frames, tokens, WIDTH)
    variables = layer.init(jax.random.key(0), x)
    own = jnp.asarray(RNG.random((TARGETS, frames, tokens)) < 0.5)
    ours = layer.apply(variables, x, AttentionEdit(own=own))
    for frame in range(frames):
        context = [x[:, 0], x[:, max(frame - 1, 0)]] if cross_frame else [x[:, frame]]
        parts = x[:, frame], jnp.concatenate(context, axis=1)
        maps, values = softmax_maps(layer, variables["params"], *parts)
        kept = jnp.where(own[:, frame, None, :, None], maps[-2:], maps[-3])
        plain = project(variables["params"], jnp.concatenate([maps[:-2], kept]), values)
        np.testing.assert_allclose(ours[:, frame], plain, atol=1e-5)


def neutral(frames: int, queries: int | None = None) -> AttentionEdit:
    own = jnp.ones((1, frames, queries or 1), bool)
    return AttentionEdit(jnp.zeros((1, TOKENS, TOKENS)), jnp.ones((1, TOKENS)), own)


@pytest.fixture(scope="module")
def params() -> dict:
    return random_params(unet_shapes(UNET), seed=0)


def unet_inputs(rows: int = 3, frames: int = 2) -> tuple:
    return normal(rows, frames, 8, 16, 4), jnp.arange(rows) * 300, normal(rows, TOKENS, 8)


@pytest.mark.parametrize("dtype", [jnp.float32, slow(jnp.bfloat16)])
def test_neutral_edit_is_no_edit_bit_for_bit(params: dict, dtype: jnp.dtype):
    unet, inputs = UNet3D(UNET, ExecutionConfig(dtype)), unet_inputs()
    plain = jax.jit(unet.apply)({"params": params}, *inputs)
    edited = jax.jit(unet.apply)({"params": params}, *inputs, None, {0: neutral(2), 1: neutral(2)})
    assert np.array_equal(np.asarray(plain), np.asarray(edited))


def test_no_edit_traces_to_the_program_without_the_argument(params: dict):
    unet, inputs = UNet3D(UNET), unet_inputs()
    plain, absent, elsewhere = (
        str(jax.make_jaxpr(lambda p, rest=rest: unet.apply({"params": p}, *inputs, *rest))(params))
        for rest in ((), (None, None), (None, {9: neutral(2)}))
    )
    assert plain == absent == elsewhere
    edited = str(jax.make_jaxpr(lambda p: unet.apply({"params": p}, *inputs, None, {0: neutral(2)}))(params))
    assert edited != plain


def test_edit_touches_its_targets_alone(params: dict):
    unet, inputs = UNet3D(UNET), unet_inputs()
    edit = neutral(2)._replace(own=jnp.zeros((1, 2, 1), bool), own_weights=jnp.full((1, TOKENS), 2.0))
    plain = jax.jit(unet.apply)({"params": params}, *inputs)
    edited = jax.jit(unet.apply)({"params": params}, *inputs, None, {0: edit})
    assert np.array_equal(plain[:2], edited[:2])
    assert np.abs(plain[2] - edited[2]).max() > 1e-3


def test_edit_of_sharded_frames_equals_that_of_one_device(params: dict):
    frames, edits = 4, {}
    for level, queries in ((0, 128), (1, 32)):
        own = jnp.asarray(RNG.random((1, frames, queries)) < 0.5)
        edits[level] = neutral(frames)._replace(source_weights=normal(1, TOKENS, TOKENS), own=own)
    edits[0] = edits[0]._replace(words=normal(2, TOKENS, 1))
    inputs = unet_inputs(frames=frames)

    def run(execution: ExecutionConfig) -> tuple:
        unet = UNet3D(UNET, execution)

        def apply(params: dict, z: jax.Array, own: dict) -> tuple:
            edit = {level: edits[level]._replace(own=x) for level, x in own.items()}
            out, left = unet.apply({"params": params}, z, *inputs[1:], None, edit, mutable=[WORDS])
            return out, word_maps(left[WORDS], z.shape[1], 8, 16)

        own = {level: edit.own for level, edit in edits.items()}
        if execution.frame_axis is None:
            return jax.jit(apply)(params, inputs[0], own)
        mesh, by_frames = Mesh(np.array(jax.devices()[:2]), ("frame",)), P(None, "frame")
        specs = (P(), by_frames, by_frames)
        mapped = jax.shard_map(apply, mesh=mesh, in_specs=specs, out_specs=by_frames, check_vma=False)
        return jax.jit(mapped)(params, inputs[0], own)

    for one, sharded in zip(run(ExecutionConfig()), run(ExecutionConfig(frame_axis="frame")), strict=True):
        np.testing.assert_allclose(one, sharded, atol=2e-4 * float(np.abs(one).max()))
