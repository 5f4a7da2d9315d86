"""The mapping to names and axes of published checkpoints and back, and its errors."""

import json
from typing import Any

import jax
import numpy as np
import pytest
from einops import rearrange
from flax.traverse_util import flatten_dict, unflatten_dict
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import FIXTURES, Reference
from fyp_jax.convert.torch_key_mapping import (
    POSE_PREFIX,
    TEMPORAL,
    from_torch,
    inflate_unet,
    params_from_torch,
    params_to_torch,
    to_torch,
    torch_layout,
)
from fyp_jax.errors import UserError
from fyp_jax.models.pose_encoder import pose_encoder_shapes
from fyp_jax.models.unet import UNet3DConfig, unet_shapes
from fyp_jax.trees import TreeMismatch

pytestmark = pytest.mark.slow  # seconds each; .ci/run runs them

SD2 = {
    "block_out_channels": [320, 640, 1280, 1280],
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
}


def layout_of(config: UNet3DConfig) -> dict[str, tuple[int, ...]]:
    both = torch_layout(unet_shapes(config)) | torch_layout(pose_encoder_shapes(config), POSE_PREFIX)
    return {name: entry.shape for name, entry in both.items()}


@pytest.mark.parametrize("size", ["sd14", "small"])
def test_layout_equals_the_published_one(size: str):
    published = json.loads((FIXTURES / f"{size}_layout.json").read_text())
    assert layout_of(UNet3DConfig(**published["config"])) == {
        name: tuple(shape) for name, shape in published["state_dict"].items()
    }


def test_defaults_are_sd14():
    published = json.loads((FIXTURES / "sd14_layout.json").read_text())
    assert UNet3DConfig(**published["config"]) == UNet3DConfig()


def test_parameter_counts_equal_the_published_ones():
    shapes = flatten_dict(
        {"unet": unet_shapes(UNet3DConfig()), "pose": pose_encoder_shapes(UNet3DConfig())}, sep="/"
    )
    count = lambda word: sum(leaf.size for path, leaf in shapes.items() if word in path)  # noqa: E731
    assert round(count("pose/") / 1e6, 1) == 77.4
    motion = ("attn1/to_q", "attn2/to_q", "attn_temp", "conv_temporal")
    assert round(sum(count(word) for word in motion) / 1e6, 1) == 86.3
    assert round(count("") / 1e6) == 998


def test_layout_of_sd2_has_linear_projections():
    layout = layout_of(UNet3DConfig(**SD2))
    assert layout["mid_block.attentions.0.proj_in.weight"] == (1280, 1280)
    assert layout["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"] == (320, 1024)


def test_round_trip_from_torch_is_bitwise(reference: Reference):
    again = to_torch(from_torch(reference.state_dict))
    assert set(again) == set(reference.state_dict)
    for name, value in reference.state_dict.items():
        assert again[name].dtype == value.dtype
        np.testing.assert_array_equal(again[name].view(np.uint32), value.view(np.uint32), err_msg=name)


def test_round_trip_to_torch_is_bitwise(reference: Reference):
    again = from_torch(to_torch(reference.params))
    assert jax.tree.structure(again) == jax.tree.structure(reference.params)
    jax.tree.map(np.testing.assert_array_equal, again, reference.params)


CHILDREN = st.sampled_from(["conv_in", "attn1", "norm", "proj_out", "linear_1", "conv_temporal"])
NUMBERED_CHILDREN = st.sampled_from(
    ["down_blocks", "resnets", "attentions", "transformer_blocks", "to_out", "net"]
)
MODULE_PATHS = st.lists(
    st.one_of(st.tuples(CHILDREN, st.none()), st.tuples(NUMBERED_CHILDREN, st.integers(0, 30))),
    min_size=1,
    max_size=5,
).map(tuple)
WEIGHTS = {
    ("scale", 1): "a -> a",
    ("embedding", 2): "a b -> a b",
    ("kernel", 2): "i o -> o i",
    ("kernel", 3): "k i o -> o i k",
    ("kernel", 4): "h w i o -> o i h w",
}
"""Axes in Linen and in PyTorch, for each kind of weight and its number of axes."""


@st.composite
def weights(draw: st.DrawFn) -> tuple[str, np.ndarray]:
    """The kind of a weight, and an array whose numbers are all different."""
    kind, ndim = draw(st.sampled_from(sorted(WEIGHTS)))
    shape = draw(st.tuples(*[st.integers(1, 4)] * ndim))
    return kind, np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@settings(deadline=None, database=None)
@given(st.dictionaries(MODULE_PATHS, weights(), min_size=1, max_size=6), st.sampled_from(["", POSE_PREFIX]))
def test_names_and_axes_of_any_modules_round_trip(modules: dict[Any, tuple[str, np.ndarray]], prefix: str):
    flat, expected = {}, {}
    for path, (kind, weight) in modules.items():
        linen = "/".join(name if i is None else f"{name}_{i}" for name, i in path)
        torch = prefix + ".".join(name if i is None else f"{name}.{i}" for name, i in path)
        flat |= {f"{linen}/{kind}": weight, f"{linen}/bias": weight.ravel()}
        expected |= {
            f"{torch}.weight": rearrange(weight, WEIGHTS[kind, weight.ndim]),
            f"{torch}.bias": weight.ravel(),
        }
    params = unflatten_dict(flat, sep="/")
    state_dict = params_to_torch(params, prefix)
    assert sorted(state_dict) == sorted(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(state_dict[name], array, err_msg=name)
    again = flatten_dict(params_from_torch(state_dict, params, "random modules", prefix), sep="/")
    assert sorted(again) == sorted(flat)
    for path, array in flat.items():
        np.testing.assert_array_equal(again[path], array, err_msg=path)


@pytest.mark.parametrize("part", ["unet", "pose_encoder"])
def test_one_model_alone_is_converted(reference: Reference, part: str):
    alone = from_torch(to_torch({part: reference.params[part]}))
    assert list(alone) == [part]
    jax.tree.map(np.testing.assert_array_equal, alone[part], reference.params[part])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_from_torch_keeps_the_dtype(reference: Reference, dtype: type):
    state_dict = {name: value.astype(dtype) for name, value in reference.state_dict.items()}
    assert {leaf.dtype for leaf in jax.tree.leaves(from_torch(state_dict))} == {np.dtype(dtype)}


TEMPORAL_KERNEL = "up_blocks.1.attentions.2.transformer_blocks.0.conv_temporal.up.weight"


@pytest.mark.parametrize("known", [False, True], ids=["inferred config", "given config"])
@pytest.mark.parametrize(
    "name", [TEMPORAL_KERNEL, "conv_out.bias", "skeleton_adapter.body.3.block2.bias", "conv_in.weight"]
)
def test_from_torch_lists_missing_name(reference: Reference, name: str, known: bool):
    state_dict = {key: value for key, value in reference.state_dict.items() if key != name}
    with pytest.raises(TreeMismatch, match=name.replace(".", r"\.")):
        from_torch(state_dict, reference.config if known else None)


@pytest.mark.parametrize(
    "name", ["mid_block.extra.weight", "skeleton_adapter.extra", "module.conv_in.weight"]
)
def test_from_torch_lists_unexpected_name(reference: Reference, name: str):
    with pytest.raises(TreeMismatch, match=rf"1 unexpected \({name}\)"):
        from_torch(reference.state_dict | {name: np.zeros(3, np.float32)})


def test_from_torch_lists_wrong_shape(reference: Reference):
    with pytest.raises(TreeMismatch, match=r"1 wrong shape \(.*conv_temporal\.up\.weight is \(64, 32, 2\)"):
        from_torch(reference.state_dict | {TEMPORAL_KERNEL: reference.state_dict[TEMPORAL_KERNEL][..., :2]})


def test_from_torch_shortens_a_long_list(reference: Reference):
    without = {name: value for name, value in reference.state_dict.items() if "attn_temp" not in name}
    with pytest.raises(TreeMismatch, match=r"80 missing \(.*, and 72 more\)"):
        from_torch(without)


def test_from_torch_of_nothing_is_refused():
    with pytest.raises(TreeMismatch, match="nothing"):
        from_torch({})


def test_to_torch_of_unknown_parameters_is_refused(reference: Reference):
    unet = reference.params["unet"] | {"extra": {"kernel": np.zeros((2, 2), np.float32)}}
    with pytest.raises(TreeMismatch, match=r"1 unexpected \(extra\.weight\)"):
        to_torch({"unet": unet})
    with pytest.raises(TreeMismatch, match="optimizer"):
        to_torch({"optimizer": {}})
    with pytest.raises(TreeMismatch, match="conv_in/odd"):
        to_torch({"unet": reference.params["unet"] | {"conv_in": {"odd": np.zeros(3, np.float32)}}})


def test_inflated_image_unet_keeps_its_weights_and_starts_silent(reference: Reference):
    unet = {name: value for name, value in reference.state_dict.items() if not name.startswith(POSE_PREFIX)}
    image = {name: value for name, value in unet.items() if not TEMPORAL.search(name)}
    assert len(unet) - len(image) == 16 * 9  # 16 transformers: attention 5, norm 2, convolution 2
    inflated, spatial = (
        flatten_dict(inflate_unet(image, reference.config, seed=0), sep="/"),
        flatten_dict(reference.params["unet"], sep="/"),
    )
    for path, leaf in inflated.items():
        if not TEMPORAL.search(path):
            np.testing.assert_array_equal(leaf, spatial[path], err_msg=path)
        elif path.endswith(("attn_temp/to_out_0/kernel", "conv_temporal/up/kernel")):
            assert not np.any(leaf), path
        elif path.endswith("conv_temporal/down/kernel"):
            assert np.std(leaf) == pytest.approx(1 / leaf.shape[-1], rel=0.1), path
    with pytest.raises(UserError, match="unexpected"):
        inflate_unet(unet, reference.config, seed=0)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("class_embed_type", "timestep"),
        ("addition_embed_type", "text_time"),
        ("act_fn", "gelu"),
        ("freq_shift", 1),
    ],
)
def test_unsupported_unet_config_is_refused(field: str, value: object):
    with pytest.raises(UserError, match=field):
        UNet3DConfig.from_json({field: value})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"attention_head_dim": [5, 10]}, "attention_head_dim has 2 entries for 4"),
        ({"down_block_types": ["DownBlock2D"] * 3}, "down_block_types has 3 entries"),
        ({"up_block_types": ["SimpleCrossAttnUpBlock2D"] * 4}, "SimpleCrossAttnUpBlock2D"),
        ({"norm_num_groups": 48}, "48 groups"),
        ({"norm_num_groups": 0}, "norm_num_groups=0 is not made of whole numbers"),
        ({"cross_attention_dim": True}, "cross_attention_dim=True"),
    ],
)
def test_inconsistent_unet_config_is_refused(values: dict, message: str):
    with pytest.raises(UserError, match=message):
        UNet3DConfig(**values)


def test_unet_config_json_round_trip():
    config = UNet3DConfig(**SD2)
    assert UNet3DConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
