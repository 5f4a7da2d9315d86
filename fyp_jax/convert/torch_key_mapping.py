"""The mapping between parameter paths and PyTorch's names, for both directions.

Modules have the same names on both sides, except numbered children: `resnets.0` in PyTorch is `resnets_0` in
Linen (`NUMBERED_CHILD`). The arrays of a module differ in name and in the order of their axes
(`ARRAY_MAPPINGS`).
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from fyp_jax import trees
from fyp_jax.convert.lazy import LazyArray
from fyp_jax.models.pose_encoder import pose_encoder_shapes
from fyp_jax.models.unet import TEMPORAL, TEMPORAL_CONV, UNet3DConfig, init_temporal, unet_shapes

POSE_PREFIX = "skeleton_adapter."
"""Prefix of the pose encoder's names in a file that also holds the video UNet."""

NUMBERED_CHILD = re.compile(
    r"\b(attentions|body|down_blocks|downsamplers|net|resnets|to_out|transformer_blocks|up_blocks|upsamplers)_(\d+)\b"
)


class ArrayMapping(NamedTuple):
    """One kind of array."""

    flax: str
    """Name in Linen."""
    torch: str
    """Name in PyTorch."""
    axes: tuple[int, ...]
    """`linen_array.transpose(axes)` has PyTorch's order of axes."""


ARRAY_MAPPINGS = (
    ArrayMapping("bias", "bias", (0,)),
    ArrayMapping("scale", "weight", (0,)),  # normalisation
    ArrayMapping("embedding", "weight", (0, 1)),  # one row for each token
    ArrayMapping("kernel", "weight", (1, 0)),  # dense layer: in out -> out in
    ArrayMapping("kernel", "weight", (2, 1, 0)),  # temporal convolution: k in out -> out in k
    ArrayMapping("kernel", "weight", (3, 2, 0, 1)),  # spatial convolution: h w in out -> out in h w
    ArrayMapping("class_embedding", "class_embedding", (0,)),  # this and the next only in CLIP
    ArrayMapping("logit_scale", "logit_scale", ()),
)


class TorchArray(NamedTuple):
    """An array of a PyTorch model, and the parameter that it corresponds to."""

    path: str
    """Parameter path in Linen."""
    axes: tuple[int, ...]
    """`parameter.transpose(axes)` is the PyTorch array."""
    shape: tuple[int, ...]
    """Shape in PyTorch."""


def torch_layout(tree: Mapping[str, Any], prefix: str = "") -> dict[str, TorchArray]:
    """The arrays of a PyTorch model by their names, for nested parameters (or their shapes).

    Raises TreeMismatch for a parameter of an unknown kind.
    """
    layout = {}
    flat: dict[str, Any] = flatten_dict(tree, sep="/")
    for path, leaf in flat.items():
        module, _, kind = path.rpartition("/")
        mappings = [x for x in ARRAY_MAPPINGS if x.flax == kind and len(x.axes) == len(leaf.shape)]
        if not mappings:
            raise trees.TreeMismatch(f"no PyTorch name for {path} of shape {tuple(leaf.shape)}")
        (mapping,) = mappings
        torch_path = f"{module}/{mapping.torch}".removeprefix("/")
        name = prefix + NUMBERED_CHILD.sub(r"\1.\2", torch_path).replace("/", ".")
        layout[name] = TorchArray(path, mapping.axes, tuple(leaf.shape[axis] for axis in mapping.axes))
    return layout


def params_from_torch(
    state_dict: Mapping[str, Any], shapes: Mapping[str, Any], what: str, prefix: str = ""
) -> dict[str, Any]:
    """The nested parameters of any model, from PyTorch's names and axes, as views.

    `shapes` are the model's nested parameter shapes. Raises TreeMismatch, whose message starts with `what`,
    where names or shapes do not fit.
    """
    layout = torch_layout(shapes, prefix)
    trees.check_same(state_dict, layout, what)
    return unflatten_dict(
        {entry.path: state_dict[name].transpose(np.argsort(entry.axes)) for name, entry in layout.items()},
        sep="/",
    )


def params_to_torch(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The nested parameters of any model with PyTorch's names and axes; the inverse of `params_from_torch`.

    A LazyArray stays lazy; other arrays become numpy arrays.
    """
    flat: dict[str, Any] = flatten_dict(params, sep="/")
    host = {path: x if isinstance(x, LazyArray) else np.asarray(x) for path, x in flat.items()}
    layout = torch_layout(params, prefix)
    return {name: host[entry.path].transpose(entry.axes) for name, entry in layout.items()}


def from_torch(state_dict: Mapping[str, Any], config: UNet3DConfig | None = None) -> dict[str, Any]:
    """PyTorch's names and axes -> {"unet": parameters, "pose_encoder": parameters}, as views.

    Takes the video UNet, the pose encoder under `skeleton_adapter.`, or both; a model without any array is
    absent from the result. Without `config`, the sizes are inferred from the arrays. Raises TreeMismatch,
    with the names, where an array is missing, unexpected or of a wrong shape.
    """
    pose = {name: value for name, value in state_dict.items() if name.startswith(POSE_PREFIX)}
    unet = {name: value for name, value in state_dict.items() if name not in pose}
    params = {}
    if unet or not pose:
        shapes = unet_shapes(config or infer_unet_config(unet))
        params["unet"] = params_from_torch(unet, shapes, "video UNet")
    if pose:
        shapes = pose_encoder_shapes(config or infer_pose_encoder_config(pose))
        params["pose_encoder"] = params_from_torch(pose, shapes, "pose encoder", POSE_PREFIX)
    return params


def to_torch(params: Mapping[str, Any]) -> dict[str, Any]:
    """{"unet": parameters, "pose_encoder": parameters}, or one of them -> PyTorch's names and axes.

    The exact inverse of `from_torch`, bit for bit; raises TreeMismatch as it does. A LazyArray stays lazy.
    """
    if unknown := set(params) - {"unet", "pose_encoder"}:
        raise trees.TreeMismatch(f"no PyTorch names for {sorted(unknown)}, only for unet and pose_encoder")
    state_dict: dict[str, Any] = {}
    for part, prefix in (("unet", ""), ("pose_encoder", POSE_PREFIX)):
        if part in params:
            state_dict |= params_to_torch(params[part], prefix)
    from_torch(state_dict)  # raises unless names and shapes are those of complete models
    return state_dict


def image_unet_to_torch(unet: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a video UNet with PyTorch's names and axes, without its temporal layers."""
    return {name: x for name, x in params_to_torch(unet).items() if not TEMPORAL.search(name)}


def tuneavideo_to_torch(unet: Mapping[str, Any]) -> dict[str, Any]:
    """The same with temporal attention, and without temporal convolutions: the UNet of Tune-A-Video."""
    return {name: x for name, x in params_to_torch(unet).items() if not TEMPORAL_CONV.search(name)}


def inflate_unet(state_dict: Mapping[str, np.ndarray], config: UNet3DConfig, seed: int) -> dict[str, Any]:
    """Inflate an image UNet to clips: parameters of UNet3D, with temporal layers initialised from `seed`.

    Raises TreeMismatch as `image_unet_from_torch`.
    """
    image = flatten_dict(image_unet_from_torch(state_dict, config), sep="/")
    return unflatten_dict(image | init_temporal(config, jax.random.key(seed)), sep="/")


def image_unet_from_torch(state_dict: Mapping[str, np.ndarray], config: UNet3DConfig) -> dict[str, Any]:
    """The parameters of UNet3D that an image UNet has, which are all but the temporal layers.

    Raises TreeMismatch where the arrays are not those of a `UNet2DConditionModel` of this config.
    """
    shapes: dict[str, Any] = flatten_dict(unet_shapes(config), sep="/")
    spatial = {path: shape for path, shape in shapes.items() if not TEMPORAL.search(path)}
    return params_from_torch(state_dict, unflatten_dict(spatial, sep="/"), "image UNet")


def infer_unet_config(state_dict: Mapping[str, Any]) -> UNet3DConfig:
    """The config of the UNet that has these arrays. Numbers of heads and groups are unknown, and set to 1."""
    levels = _count(state_dict, r"down_blocks\.(\d+)\.")
    with_text = [f"down_blocks.{i}.attentions.0.norm.weight" in state_dict for i in range(levels)]
    attention = f"down_blocks.{with_text.index(True) if any(with_text) else 0}.attentions.0."
    return UNet3DConfig(
        in_channels=_shape(state_dict, "conv_in.weight")[1],
        out_channels=_shape(state_dict, "conv_out.weight")[0],
        down_block_types=["CrossAttnDownBlock2D" if text else "DownBlock2D" for text in with_text],
        up_block_types=["CrossAttnUpBlock2D" if text else "UpBlock2D" for text in with_text[::-1]],
        block_out_channels=[
            _shape(state_dict, f"down_blocks.{i}.resnets.0.conv1.weight")[0] for i in range(levels)
        ],
        layers_per_block=_count(state_dict, r"down_blocks\.0\.resnets\.(\d+)\."),
        cross_attention_dim=_shape(state_dict, attention + "transformer_blocks.0.attn2.to_k.weight")[1],
        transformer_layers_per_block=_count(state_dict, r".*\.transformer_blocks\.(\d+)\."),
        use_linear_projection=len(_shape(state_dict, attention + "proj_in.weight")) == 2,
        attention_head_dim=1,
        norm_num_groups=1,
    )


def infer_pose_encoder_config(state_dict: Mapping[str, Any]) -> UNet3DConfig:
    """A config of the pose encoder that has these arrays; only its `block_out_channels` has a meaning."""
    levels = _count(state_dict, POSE_PREFIX + r"body\.(\d+)\.") // 2
    widths = [_shape(state_dict, f"{POSE_PREFIX}body.{2 * i}.block1.weight")[0] for i in range(levels)]
    return UNet3DConfig(
        down_block_types=["DownBlock2D"] * levels,
        up_block_types=["UpBlock2D"] * levels,
        block_out_channels=widths,
        attention_head_dim=1,
        norm_num_groups=1,
    )


def _count(state_dict: Mapping[str, Any], pattern: str) -> int:
    """One more than the largest number that the group of `pattern` matches in the names."""
    numbers = [int(match[1]) for name in state_dict if (match := re.match(pattern, name))]
    return max(numbers, default=-1) + 1


def _shape(state_dict: Mapping[str, Any], name: str) -> tuple[int, ...]:
    if name not in state_dict:
        found = ", ".join(sorted(state_dict)[: trees.MAX_LISTED]) or "nothing"
        raise trees.TreeMismatch(f"cannot infer the model's sizes: {name} is missing (found {found}, ...)")
    return tuple(state_dict[name].shape)
