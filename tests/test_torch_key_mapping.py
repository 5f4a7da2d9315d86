"""Names and shapes of published checkpoints, both ways, and what is said where they do not fit."""

import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from conftest import FIXTURES, Reference
from fyp_jax.convert.torch_key_mapping import (
    POSE_PREFIX,
    TEMPORAL,
    from_torch,
    inflate_unet,
    to_torch,
    torch_layout,
)
from fyp_jax.errors import UserError
from fyp_jax.models.pose_encoder import pose_encoder_shapes
from fyp_jax.models.unet import UNet3DConfig, unet_shapes
from fyp_jax.trees import TreeMismatch

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
def test_layout_is_the_published_one(size: str):
    published = json.loads((FIXTURES / f"{size}_layout.json").read_text())
    assert layout_of(UNet3DConfig(**published["config"])) == {
        name: tuple(shape) for name, shape in published["state_dict"].items()
    }


def test_defaults_are_sd14():
    published = json.loads((FIXTURES / "sd14_layout.json").read_text())
    assert UNet3DConfig(**published["config"]) == UNet3DConfig()


def test_parameter_counts():
    shapes = flatten_dict(
        {"unet": unet_shapes(UNet3DConfig()), "pose": pose_encoder_shapes(UNet3DConfig())}, sep="/"
    )
    count = lambda word: sum(leaf.size for path, leaf in shapes.items() if word in path)  # noqa: E731
    assert round(count("pose/") / 1e6, 1) == 77.4
    motion = ("attn1/to_q", "attn2/to_q", "attn_temp", "conv_temporal")
    assert round(sum(count(word) for word in motion) / 1e6, 1) == 86.3
    assert round(count("") / 1e6) == 998


def test_sd2_has_linear_projections():
    layout = layout_of(UNet3DConfig(**SD2))
    assert layout["mid_block.attentions.0.proj_in.weight"] == (1280, 1280)
    assert layout["down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"] == (320, 1024)


def test_round_trip_is_bitwise(reference: Reference):
    back = to_torch(from_torch(reference.state_dict))
    assert set(back) == set(reference.state_dict)
    for name, value in reference.state_dict.items():
        assert back[name].dtype == value.dtype
        np.testing.assert_array_equal(back[name].view(np.uint32), value.view(np.uint32), err_msg=name)


def test_round_trip_of_ours_is_bitwise(reference: Reference):
    again = from_torch(to_torch(reference.params))
    assert jax.tree.structure(again) == jax.tree.structure(reference.params)
    jax.tree.map(np.testing.assert_array_equal, again, reference.params)


@pytest.mark.parametrize("part", ["unet", "pose_encoder"])
def test_one_part_alone(reference: Reference, part: str):
    alone = from_torch(to_torch({part: reference.params[part]}))
    assert list(alone) == [part]
    jax.tree.map(np.testing.assert_array_equal, alone[part], reference.params[part])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_dtype_is_kept(reference: Reference, dtype: type):
    state_dict = {name: value.astype(dtype) for name, value in reference.state_dict.items()}
    assert {leaf.dtype for leaf in jax.tree.leaves(from_torch(state_dict))} == {np.dtype(dtype)}


UP = "up_blocks.1.attentions.2.transformer_blocks.0.conv_temporal.up.weight"


@pytest.mark.parametrize("known", [False, True], ids=["sizes read off", "config given"])
@pytest.mark.parametrize(
    "name", [UP, "conv_out.bias", "skeleton_adapter.body.3.block2.bias", "conv_in.weight"]
)
def test_missing_name(reference: Reference, name: str, known: bool):
    state_dict = {key: value for key, value in reference.state_dict.items() if key != name}
    with pytest.raises(TreeMismatch, match=name.replace(".", r"\.")):
        from_torch(state_dict, reference.config if known else None)


@pytest.mark.parametrize(
    "name", ["mid_block.extra.weight", "skeleton_adapter.extra", "module.conv_in.weight"]
)
def test_leftover_name(reference: Reference, name: str):
    with pytest.raises(TreeMismatch, match=rf"1 unexpected \({name}\)"):
        from_torch(reference.state_dict | {name: np.zeros(3, np.float32)})


def test_wrong_shape(reference: Reference):
    with pytest.raises(TreeMismatch, match=r"1 wrong shape \(.*conv_temporal\.up\.weight is \(64, 32, 2\)"):
        from_torch(reference.state_dict | {UP: reference.state_dict[UP][..., :2]})


def test_many_names_are_counted(reference: Reference):
    without = {name: value for name, value in reference.state_dict.items() if "attn_temp" not in name}
    with pytest.raises(TreeMismatch, match=r"80 missing \(.*, and 72 more\)"):
        from_torch(without)


def test_nothing_at_all():
    with pytest.raises(TreeMismatch, match="nothing"):
        from_torch({})


def test_leftover_on_our_side(reference: Reference):
    unet = reference.params["unet"] | {"extra": {"kernel": np.zeros((2, 2), np.float32)}}
    with pytest.raises(TreeMismatch, match=r"1 unexpected \(extra\.weight\)"):
        to_torch({"unet": unet})
    with pytest.raises(TreeMismatch, match="optimizer"):
        to_torch({"optimizer": {}})
    with pytest.raises(TreeMismatch, match="conv_in/odd"):
        to_torch({"unet": reference.params["unet"] | {"conv_in": {"odd": np.zeros(3, np.float32)}}})


def test_image_unet_is_inflated(reference: Reference):
    unet = {name: value for name, value in reference.state_dict.items() if not name.startswith(POSE_PREFIX)}
    image = {name: value for name, value in unet.items() if not TEMPORAL.search(name)}
    assert len(unet) - len(image) == 16 * 9  # attention 5, norm 2, convolution 2 in each of 16 transformers
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
def test_other_networks_are_refused(field: str, value: object):
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
def test_bad_configs(values: dict, message: str):
    with pytest.raises(UserError, match=message):
        UNet3DConfig(**values)


def test_config_survives_json():
    config = UNet3DConfig(**SD2)
    assert UNet3DConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
