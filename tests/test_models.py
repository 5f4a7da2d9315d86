"""Properties of the models that no stored array of the published model shows."""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from flax.traverse_util import flatten_dict, unflatten_dict
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import Reference, slow
from fyp_jax.models import attention_functions
from fyp_jax.models.attention import CrossFrameAttention
from fyp_jax.models.attention_functions import MIN_BLOCKWISE_SCORES, blockwise_attention
from fyp_jax.models.blocks import DownBlock
from fyp_jax.models.execution import REMAT, AttentionHook, ExecutionConfig
from fyp_jax.models.pose_encoder import PoseEncoder, init_pose_encoder, pose_encoder_shapes
from fyp_jax.models.random_params import random_params
from fyp_jax.models.resnet import video_group_norm
from fyp_jax.models.transformer import TemporalConv, TransformerBlock
from fyp_jax.models.unet import UNet3D, UNet3DConfig, unet_shapes

TINY = UNet3DConfig(
    block_out_channels=[8, 16],
    down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
    up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
    layers_per_block=1,
    cross_attention_dim=6,
    attention_head_dim=2,
    norm_num_groups=4,
)


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def run(
    config: UNet3DConfig, latents: jax.Array, text: jax.Array, t: int = 500, **options: object
) -> jax.Array:
    apply = compiled(config)
    return apply(
        random_params(unet_shapes(config), seed=0), latents, text, jnp.full(len(latents), t), **options
    )


@functools.cache
def compiled(config: UNet3DConfig) -> Callable[..., jax.Array]:
    return jax.jit(
        lambda params, z, text, t, **options: UNet3D(config).apply({"params": params}, z, t, text, **options)
    )


@pytest.mark.slow
def test_clips_of_a_batch_are_predicted_independently():
    latents, text = normal(0, 2, 1, 4, 4, 4), normal(1, 2, 5, 6)
    both = run(TINY, latents, text)
    assert both.shape == latents.shape
    assert both.std() > 0.01
    for i in range(2):
        np.testing.assert_allclose(both[i], run(TINY, latents[i : i + 1], text[i : i + 1])[0], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(2, 1, 2, 6, 4), (1, 5, 6, 2, 4)])
def test_prediction_has_the_shape_of_the_latents(shape: tuple[int, ...]):
    eps = run(TINY, normal(0, *shape), normal(1, shape[0], 5, 6))
    assert eps.shape == shape
    assert jnp.isfinite(eps).all()
    assert eps.std() > 0.01


@pytest.mark.slow
def test_transposed_input_and_kernels_give_transposed_prediction():
    """Rows and columns of latents and kernels are swapped: a place that confused them would show."""
    params = random_params(unet_shapes(TINY), seed=0)
    latents, text = normal(0, 1, 2, 4, 6, 4), normal(1, 1, 5, 6)

    def transposed(leaf: np.ndarray) -> np.ndarray:
        return leaf.transpose(1, 0, 2, 3) if leaf.ndim == 4 else leaf

    swapped = compiled(TINY)(
        jax.tree.map(transposed, params), latents.transpose(0, 1, 3, 2, 4), text, jnp.array([500])
    )
    np.testing.assert_allclose(run(TINY, latents, text), swapped.transpose(0, 1, 3, 2, 4), atol=1e-4)


@pytest.mark.slow
def test_linear_projection_equals_1x1_convolution():
    config = dataclasses.replace(TINY, use_linear_projection=True)
    latents, text = normal(0, 1, 2, 4, 4, 4), normal(1, 1, 5, 6)
    params = flatten_dict(random_params(unet_shapes(config), seed=0), sep="/")
    as_convolution = {
        path: leaf[None, None] if re.search(r"attentions_\d/proj_(in|out)/kernel", path) else leaf
        for path, leaf in params.items()
    }
    convolved = compiled(TINY)(unflatten_dict(as_convolution, sep="/"), latents, text, jnp.array([500]))
    np.testing.assert_allclose(convolved, run(config, latents, text), atol=1e-5)


@pytest.mark.slow
def test_number_of_heads_changes_the_prediction_of_the_same_weights():
    config = dataclasses.replace(TINY, attention_head_dim=[2, 4])
    latents, text = normal(0, 1, 2, 4, 4, 4), normal(1, 1, 5, 6)
    assert jnp.abs(run(config, latents, text) - run(TINY, latents, text)).max() > 1e-3


@pytest.mark.slow
def test_prediction_depends_on_text_timestep_and_pose():
    latents, text = normal(0, 1, 1, 4, 4, 4), normal(1, 1, 5, 6)
    eps = run(TINY, latents, text)
    features = [normal(2, 1, 1, 4, 4, 8), normal(3, 1, 1, 2, 2, 16)]
    for other in (
        run(TINY, latents, text + 1),
        run(TINY, latents, text, t=400),
        run(TINY, latents, text, pose_features=features),
    ):
        assert jnp.abs(eps - other).max() > 1e-3
    with pytest.raises(ValueError, match="1 pose features for 2 levels"):
        run(TINY, latents, text, pose_features=features[:1])


@pytest.mark.slow
def test_prediction_in_bfloat16_is_near_float32():
    latents, text = normal(0, 1, 1, 4, 4, 4), normal(1, 1, 5, 6)
    unet, params = UNet3D(TINY, ExecutionConfig(jnp.bfloat16)), random_params(unet_shapes(TINY), seed=0)
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    eps = jax.jit(unet.apply)({"params": half}, latents, jnp.array([500]), text)
    assert eps.dtype == jnp.bfloat16  # pyright: ignore[reportAttributeAccessIssue]
    exact = np.asarray(run(TINY, latents, text))
    assert np.sqrt(np.mean((np.asarray(eps, np.float32) - exact) ** 2)) < 0.03 * exact.std()


@pytest.mark.slow
def test_prediction_of_the_reference_in_bfloat16_is_near_float32(reference: Reference):
    unet = UNet3D(reference.config, ExecutionConfig(jnp.bfloat16))
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), reference.params["unet"])
    eps = jax.jit(unet.apply)({"params": params}, reference.latents, jnp.array([501]), reference.text)
    assert eps.dtype == jnp.bfloat16
    exact = reference.arrays["eps_no_pose"].transpose(0, 2, 3, 4, 1)
    assert np.sqrt(np.mean((np.asarray(eps, np.float32) - exact) ** 2)) < 0.03 * exact.std()


@pytest.mark.slow
@pytest.mark.parametrize("zero", [True, False])
def test_untrained_temporal_layers_add_nothing_with_zero_init_alone(zero: bool):
    """With the initialisation of the published code, temporal attention changes the output."""
    block = TransformerBlock(dataclasses.replace(TINY, zero_init_temporal=zero), heads=2, width=8)
    x, text = normal(0, 1, 3, 4, 8), normal(1, 1, 5, 6)
    params = jax.jit(block.init)(jax.random.key(0), x, text)["params"]
    zeroed = params | {"attn_temp": jax.tree.map(jnp.zeros_like, params["attn_temp"])}
    apply = jax.jit(block.apply)
    difference = apply({"params": params}, x, text) - apply({"params": zeroed}, x, text)
    assert jnp.any(difference) == (not zero)


def test_cross_frame_attention_reads_the_first_and_the_previous_frame():
    attention = CrossFrameAttention(heads=2, width=8)
    x = normal(0, 1, 5, 3, 8)
    params = random_params(jax.eval_shape(attention.init, jax.random.key(0), x), seed=0)
    apply = jax.jit(attention.apply)
    before = apply(params, x)
    for changed, touched in ((0, {0, 1, 2, 3, 4}), (2, {2, 3}), (4, {4})):
        after = apply(params, x.at[:, changed].add(1.0))
        assert {i for i in range(5) if jnp.abs(after - before)[:, i].max() > 1e-6} == touched


def test_cross_frame_attention_of_equal_frames_is_self_attention():
    attention, x = CrossFrameAttention(heads=2, width=8), normal(0, 1, 1, 3, 8)
    params = random_params(jax.eval_shape(attention.init, jax.random.key(0), x), seed=0)
    clip = attention.apply(params, jnp.broadcast_to(x, (1, 4, 3, 8)))
    np.testing.assert_allclose(clip, jnp.broadcast_to(attention.apply(params, x), clip.shape), atol=1e-6)


def hooked(hook: AttentionHook | None) -> jax.Array:
    """The output of the first down block of a tiny UNet whose attention layers call the hook."""
    block = DownBlock(TINY, 8, 2, False, ExecutionConfig(attention_hook=hook))
    inputs = normal(0, 1, 2, 4, 4, 8), normal(1, 1, 32), normal(2, 1, 5, 6), None
    params = random_params(jax.eval_shape(block.init, jax.random.key(0), *inputs), seed=0)
    return jax.jit(block.apply)(params, *inputs)[0]  # pyright: ignore


def test_attention_hook_sees_every_attention_layer_by_its_path():
    seen = set()

    def hook(path: str, *qkv: Any) -> Any:
        seen.add(path)
        return qkv

    unet = UNet3D(TINY, ExecutionConfig(attention_hook=hook))
    shapes = unet_shapes(TINY)
    latents, text = jnp.zeros((1, 2, 4, 4, 4)), jnp.zeros((1, 5, 6))
    jax.eval_shape(unet.apply, {"params": shapes}, latents, jnp.zeros(1, jnp.int32), text)
    layers = {path.removesuffix("/to_q/kernel") for path in flatten_dict(shapes, sep="/") if "/to_q/" in path}
    assert len(layers) == 3 * 4, "attn1, attn2 and attn_temp of one down, one middle and two up transformers"
    assert seen == layers


@pytest.mark.slow
def test_identity_attention_hook_changes_no_bit_and_zero_values_of_attn1_do():
    def zero_values(path: str, q: jax.Array, keys: Any, values: Any) -> Any:
        return q, keys, [0 * v for v in values] if path.endswith("attn1") else values

    without = hooked(None)
    np.testing.assert_array_equal(hooked(lambda path, *qkv: qkv), without)
    assert jnp.abs(hooked(zero_values) - without).max() > 1e-3


@pytest.mark.parametrize(
    ("dtype", "tolerance", "block"),
    [
        (jnp.float32, 1e-5, 4000),
        slow(jnp.float32, 1e-5, 10**9),
        slow(jnp.bfloat16, 2e-2, 10**9),
        slow(jnp.bfloat16, 2e-2, 4000),
    ],
)
def test_blockwise_attention_and_gradient_equal_dot_product_attention(
    dtype: type, tolerance: float, block: int, monkeypatch: pytest.MonkeyPatch
):
    """Some keys are the same for all frames, others each frame's own."""
    monkeypatch.setattr(attention_functions, "MAX_BLOCK_SCORES", block)
    clips, frames, queries, heads, width = 2, 3, 100, 3, 8
    q = normal(0, clips, frames, queries, heads, width).astype(dtype)
    shared, own = (
        normal(1 + i, clips, f, m, heads, width) for i, (f, m) in enumerate(((1, 130), (frames, 70)))
    )
    keys = [shared.astype(dtype), own.astype(dtype)]
    assert queries * 200 >= MIN_BLOCKWISE_SCORES

    def in_blocks(q: jax.Array, keys: list) -> jax.Array:
        return blockwise_attention(q, keys, [-k for k in keys])

    def plain(q: jax.Array, keys: list) -> jax.Array:
        q, *keys = (t.astype(jnp.float32) for t in (q, *keys))
        k = jnp.concatenate([jnp.broadcast_to(t, (clips, frames, *t.shape[2:])) for t in keys], axis=2)
        read = jax.nn.dot_product_attention(*(t.reshape(-1, *t.shape[2:]) for t in (q, k, -k)))
        return read.reshape(q.shape)

    ours, exact = in_blocks(q, keys), plain(q, keys)
    assert ours.dtype == dtype
    np.testing.assert_allclose(ours.astype(jnp.float32), exact, atol=tolerance)
    weights = normal(5, *q.shape)
    gradients = [
        jax.grad(lambda q, keys, form=form: (form(q, keys).astype(jnp.float32) * weights).sum(), (0, 1))(
            q, keys
        )
        for form in (in_blocks, plain)
    ]
    for one, other in zip(*map(jax.tree.leaves, gradients), strict=True):
        scale = float(jnp.abs(other.astype(jnp.float32)).max())
        np.testing.assert_allclose(
            one.astype(jnp.float32), other.astype(jnp.float32), atol=2 * tolerance * max(scale, 1)
        )


def test_blockwise_attention_holds_the_scores_of_one_head():
    """A clip of 32 frames at 512x512 must not hold its 8.6 G scores (x 4 bytes) at once."""
    shape = jax.ShapeDtypeStruct((1, 8, 1024, 8, 40), jnp.float32)
    temporaries = attention_bytes(lambda q, k: blockwise_attention(q, [k], [k]), shape, shape)
    all_scores = 8 * 8 * 1024 * 1024 * 4
    assert temporaries < all_scores / 4, f"{temporaries} bytes"


def test_blockwise_attention_does_not_copy_shared_keys_for_each_frame():
    """With keys for each frame in their place, the program holds a copy of them for each of 32 frames."""
    q, k = (jax.ShapeDtypeStruct((1, 32, size, 1, 64), jnp.float32) for size in (128, 4096))
    shared = jax.ShapeDtypeStruct((1, 1, 4096, 1, 64), jnp.float32)
    copied = attention_bytes(
        lambda q, k: blockwise_attention(q, [jnp.broadcast_to(k, (1, 32, *k.shape[2:]))], [k]), q, shared
    )
    ours = attention_bytes(lambda q, k: blockwise_attention(q, [k], [k]), q, shared)
    one_copy = k.size * 4
    assert copied > one_copy
    assert ours < one_copy / 2, f"{ours} bytes"


def attention_bytes(function: Any, *shapes: jax.ShapeDtypeStruct) -> int:
    """Bytes of the temporary arrays of a compiled function."""
    return jax.jit(function).lower(*shapes).compile().memory_analysis().temp_size_in_bytes


def softmax_attention(q: np.ndarray, keys: list[np.ndarray], values: list[np.ndarray]) -> np.ndarray:
    """softmax(q k^T / sqrt(d)) v in float64 and NumPy; parts with one frame are the same for all frames."""

    def joined(parts: list[np.ndarray]) -> np.ndarray:
        whole = [np.broadcast_to(x, (len(q), q.shape[1], *x.shape[2:])) for x in parts]
        return np.concatenate(whole, axis=2).astype(np.float64)

    scores = np.einsum("gfnhd,gfmhd->gfhnm", q.astype(np.float64), joined(keys)) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return np.einsum("gfhnm,gfmhd->gfnhd", weights, joined(values))


def test_blockwise_attention_of_large_scores_equals_float64_softmax():
    """exp overflows float32 from 89 on; the scores go to 20000 here."""
    rng = np.random.default_rng(0)
    q, k, v = (rng.uniform(-1, 1, (1, 1, 128, 1, 4)).astype(np.float32) for _ in range(3))
    q, k = 100 * q, 100 * k
    assert MIN_BLOCKWISE_SCORES <= 128 * 128, "else heads are not computed one after the other"
    scores = np.einsum("gfnhd,gfmhd->gfhnm", q, k) / 2
    assert scores.max() > 5000
    found = blockwise_attention(jnp.asarray(q), [jnp.asarray(k)], [jnp.asarray(v)])
    np.testing.assert_allclose(found, softmax_attention(q, [k], [v]), atol=0.01)


@st.composite
def attention_shapes(draw: st.DrawFn) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
    """Shape of the queries; and frames (1: shared) and tokens of each part of the keys.

    Few sizes, so that most examples find their operations compiled.
    """
    groups, frames, heads = draw(st.integers(1, 2)), draw(st.sampled_from([1, 3])), draw(st.integers(1, 2))
    queries, width = draw(st.sampled_from([1, 6])), draw(st.sampled_from([1, 4]))
    part = st.tuples(st.sampled_from([1, frames]), st.sampled_from([1, 5]))
    return (groups, frames, queries, heads, width), draw(st.lists(part, min_size=1, max_size=2))


@pytest.mark.slow
@given(attention_shapes(), st.sampled_from([1, 10, 10**9]), st.integers(0, 2**32 - 1))
@settings(max_examples=8, deadline=None, derandomize=True)
def test_blockwise_attention_of_any_shape_equals_softmax_attention(
    shapes: tuple[tuple[int, ...], list[tuple[int, int]]], max_block_scores: int, seed: int
):
    """With thresholds so low that small arrays are computed in blocks too."""
    shape, parts = shapes
    rng = np.random.default_rng(seed)
    q = rng.standard_normal(shape, np.float32)
    keys, values = (
        [rng.standard_normal((shape[0], f, m, *shape[3:]), np.float32) for f, m in parts] for _ in range(2)
    )
    with pytest.MonkeyPatch.context() as patch, jax.disable_jit():
        patch.setattr(attention_functions, "MIN_BLOCKWISE_SCORES", 1)
        patch.setattr(attention_functions, "MAX_BLOCK_SCORES", max_block_scores)
        found = blockwise_attention(*jax.tree.map(jnp.asarray, (q, keys, values)))
    np.testing.assert_allclose(found, softmax_attention(q, keys, values), atol=1e-5)


def test_blockwise_attention_divides_queries_into_blocks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention_functions, "MIN_BLOCKWISE_SCORES", 1)
    monkeypatch.setattr(attention_functions, "MAX_BLOCK_SCORES", 3 * 10)
    seen = []

    def one_block(q: jax.Array, keys: list[jax.Array], values: list[jax.Array]) -> jax.Array:
        seen.append((len(q), sum(len(k) for k in keys)))
        return q

    monkeypatch.setattr(attention_functions, "_attend_one_block", one_block)
    q, k = jnp.zeros((1, 2, 12, 2, 4)), jnp.zeros((1, 1, 10, 2, 4))
    blockwise_attention(q, [k], [k])
    assert set(seen) == {(3, 10)}


@pytest.mark.slow
def test_video_group_norm_has_one_variance_for_all_frames():
    x = normal(0, 1, 3, 4, 4, 8) * jnp.arange(1.0, 4)[None, :, None, None, None]
    y = video_group_norm(TINY).apply({"params": {"scale": jnp.ones(8), "bias": jnp.zeros(8)}}, x)
    groups = rearrange(y, "b f h w (g c) -> g (b f h w c)", g=4)
    np.testing.assert_allclose(groups.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(groups.std(axis=1), 1, atol=1e-3)
    assert y[:, 2].std() > 2 * y[:, 0].std()  # a norm for each frame would have made them equal


def test_temporal_conv_reaches_two_frames_each_way():
    conv, x = TemporalConv(), jnp.zeros((1, 9, 4))
    params = random_params(jax.eval_shape(conv.init, jax.random.key(0), x), seed=0)
    touched = jnp.abs(conv.apply(params, x.at[:, 4].set(1.0))).max(axis=(0, 2)) > 0
    assert np.flatnonzero(touched).tolist() == [2, 3, 4, 5, 6]  # two convolutions of width 3


def test_untrained_pose_encoder_gives_zero_maps_and_has_a_gradient():
    params = init_pose_encoder(TINY, jax.random.key(0))
    pose_images = jax.random.uniform(jax.random.key(1), (1, 2, 32, 16, 3))
    encoder = PoseEncoder(TINY)
    maps = jax.jit(encoder.apply)({"params": params}, pose_images)
    assert [m.shape for m in maps] == [(1, 2, 4, 2, 8), (1, 2, 2, 1, 16)]
    assert not any(jnp.any(m) for m in maps)
    total = lambda p: sum(m.sum() for m in encoder.apply({"params": p}, pose_images))  # noqa: E731
    gradient = jax.jit(jax.grad(total))(params)
    assert jnp.abs(gradient["conv_in"]["kernel"]).max() > 0


def test_pose_encoder_output_depends_on_colour_and_place():
    params = random_params(pose_encoder_shapes(TINY), seed=0)
    apply = jax.jit(lambda x: PoseEncoder(TINY).apply({"params": params}, x)[0])
    black = jnp.zeros((1, 1, 64, 32, 3))
    dot = apply(black.at[0, 0, 4, 20, 0].set(1)) - apply(black)
    assert dot[0, 0, 0, 2].std() > 0
    assert jnp.any(dot[0, 0, 3])
    assert not jnp.any(dot[0, 0, 4])  # three 3x3 convolutions on a grid of 8 pixels do not reach this row
    assert jnp.abs(apply(black.at[0, 0, 4, 20, 1].set(1)) - apply(black) - dot).max() > 1e-3


def divided(function: Callable[..., jax.Array], frames: Any, devices: int) -> jax.Array:
    """A function of clips, with the frames of each clip divided over so many devices.

    `vmap` with an axis name runs the collectives that frames on several devices use.
    """
    split, joined = "b (s f) h w c -> s b f h w c", "s b f h w c -> b (s f) h w c"
    mapped = jax.vmap(function, axis_name="frame", axis_size=devices)
    with jax.numpy_rank_promotion("allow"):  # vmap of a sum with a bias
        out = jax.jit(mapped)(jax.tree.map(lambda x: rearrange(x, split, s=devices), frames))
    return rearrange(out, joined)


def test_down_block_with_divided_frames_equals_whole_clip():
    block = DownBlock(TINY, 8, 2, True)
    x, others = normal(0, 2, 8, 6, 4, 8), (normal(1, 2, 32), normal(2, 2, 5, 6), None)
    params = random_params(jax.eval_shape(block.init, jax.random.key(0), x, *others), seed=0)
    on_devices = block.clone(execution=ExecutionConfig(frame_axis="frame"))
    found = divided(lambda x: on_devices.apply(params, x, *others)[0], x, devices=4)  # pyright: ignore
    np.testing.assert_allclose(found, jax.jit(block.apply)(params, x, *others)[0], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 4])
def test_unet_with_divided_frames_equals_whole_clip(devices: int):
    latents, text = normal(0, 2, 8, 6, 4, 4), normal(1, 2, 5, 6)
    features = [normal(2, 2, 8, 6, 4, 8), normal(3, 2, 8, 3, 2, 16)]
    params = random_params(unet_shapes(TINY), seed=0)
    unet = UNet3D(TINY, ExecutionConfig(frame_axis="frame"))

    def on_device(frames: tuple[jax.Array, list[jax.Array]]) -> jax.Array:
        latents, features = frames
        return unet.apply({"params": params}, latents, jnp.full(2, 500), text, features)  # pyright: ignore

    whole = run(TINY, latents, text, pose_features=features)
    np.testing.assert_allclose(divided(on_device, (latents, features), devices), whole, atol=2e-5)


def test_rematerialisation_keeps_fewer_arrays_for_the_gradient():
    block = DownBlock(TINY, 8, 2, False, ExecutionConfig())
    inputs = normal(0, 1, 2, 8, 8, 8), normal(1, 1, 32), normal(2, 1, 5, 6), None
    params = random_params(jax.eval_shape(block.init, jax.random.key(0), *inputs), seed=0)
    sizes = {}
    for remat in REMAT:

        def loss(params: dict, remat: str = remat) -> jax.Array:
            rematerialised = block.clone(execution=ExecutionConfig(remat=remat))
            return rematerialised.apply(params, *inputs)[0].sum()  # pyright: ignore

        backward = jax.eval_shape(lambda params, loss=loss: jax.vjp(loss, params)[1], params)
        sizes[remat] = sum(leaf.size for leaf in jax.tree.leaves(backward))
    assert sizes["all"] < sizes["transformers"] < sizes["none"], sizes


@pytest.mark.release
def test_rematerialisation_of_the_unet_changes_no_gradient():
    latents, text = normal(0, 1, 2, 16, 16, 4), normal(1, 1, 5, 6)
    params = random_params(unet_shapes(TINY), seed=0)
    gradients = {}
    for remat in REMAT:
        unet = UNet3D(TINY, ExecutionConfig(remat=remat))

        def loss(params: dict, unet: UNet3D = unet) -> jax.Array:
            eps = unet.apply({"params": params}, latents, jnp.full(1, 500), text)
            return jnp.mean(jnp.square(eps))  # pyright: ignore

        gradients[remat] = jax.jit(jax.grad(loss))(params)
    for remat in ("transformers", "all"):
        jax.tree.map(
            lambda ours, plain: np.testing.assert_allclose(ours, plain, atol=1e-5),
            gradients[remat],
            gradients["none"],
        )


def test_blockwise_attention_gradient_holds_the_scores_of_one_head():
    groups, heads, n, m = 8, 8, MIN_BLOCKWISE_SCORES // 64, 512
    q, k = (jax.ShapeDtypeStruct((groups, 1, size, heads, 8), jnp.float32) for size in (n, m))
    gradient = jax.grad(lambda q, k, v: blockwise_attention(q, [k], [v]).sum(), argnums=(0, 1, 2))
    temporaries = attention_bytes(gradient, q, k, k)
    assert temporaries < groups * heads * n * m * 4 / 2, f"{temporaries / 2**20:.1f} MiB"
