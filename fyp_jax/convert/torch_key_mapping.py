"""The table between our parameters and PyTorch's names, for both directions.

A module is named in PyTorch as here, but for numbered children, which PyTorch writes `resnets.0` and Linen
`resnets_0` (`NUMBERED`). Its arrays differ by name and by the order of their axes (`ARRAYS`).
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
from fyp_jax.models.unet import TEMPORAL, UNet3DConfig, init_temporal, unet_shapes

POSE_PREFIX = "skeleton_adapter."
"""What the names of the pose encoder carry where it is stored together with the video UNet."""

NUMBERED = re.compile(
    r"\b(attentions|body|down_blocks|downsamplers|net|resnets|to_out|transformer_blocks|up_blocks|upsamplers)_(\d+)\b"
)


class ArrayRow(NamedTuple):
    """One kind of array: its name here and in PyTorch, and which axes of ours give PyTorch's order."""

    ours: str
    torch: str
    axes: tuple[int, ...]


ARRAYS = (
    ArrayRow("bias", "bias", (0,)),
    ArrayRow("scale", "weight", (0,)),  # of a normalisation
    ArrayRow("embedding", "weight", (0, 1)),  # row by row
    ArrayRow("kernel", "weight", (1, 0)),  # dense: in out -> out in
    ArrayRow("kernel", "weight", (2, 1, 0)),  # along time: k in out -> out in k
    ArrayRow("kernel", "weight", (3, 2, 0, 1)),  # in space: h w in out -> out in h w
    ArrayRow("class_embedding", "class_embedding", (0,)),  # these two in CLIP alone
    ArrayRow("logit_scale", "logit_scale", ()),
)


class TorchArray(NamedTuple):
    """Where one of our arrays stands in PyTorch."""

    path: str
    axes: tuple[int, ...]
    shape: tuple[int, ...]


def torch_layout(tree: Mapping[str, Any], prefix: str = "") -> dict[str, TorchArray]:
    """PyTorch's name -> our path, axes and PyTorch's shape, for nested arrays or shapes of ours."""
    layout = {}
    flat: dict[str, Any] = flatten_dict(tree, sep="/")
    for path, leaf in flat.items():
        module, _, kind = path.rpartition("/")
        rows = [row for row in ARRAYS if row.ours == kind and len(row.axes) == len(leaf.shape)]
        if not rows:
            raise trees.TreeMismatch(f"no PyTorch name for {path} of shape {tuple(leaf.shape)}")
        (row,) = rows
        here = f"{module}/{row.torch}".removeprefix("/")
        name = prefix + NUMBERED.sub(r"\1.\2", here).replace("/", ".")
        layout[name] = TorchArray(path, row.axes, tuple(leaf.shape[axis] for axis in row.axes))
    return layout


def params_from_torch(
    state_dict: Mapping[str, Any], shapes: Mapping[str, Any], what: str, prefix: str = ""
) -> dict[str, Any]:
    """The parameters of any model whose nested `shapes` are known. Raises TreeMismatch; `what` opens it."""
    layout = torch_layout(shapes, prefix)
    trees.check_same(state_dict, layout, what)
    return unflatten_dict(
        {entry.path: state_dict[name].transpose(np.argsort(entry.axes)) for name, entry in layout.items()},
        sep="/",
    )


def params_to_torch(params: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The nested parameters of any model by PyTorch's names and axes; the inverse of `params_from_torch`.

    Stored arrays stay where they are; others become numpy's.
    """
    flat = flatten_dict(params, sep="/")
    return {
        name: _on_host(flat[entry.path]).transpose(entry.axes)
        for name, entry in torch_layout(params, prefix).items()
    }


def _on_host(array: Any) -> Any:
    return array if isinstance(array, LazyArray) else np.asarray(array)


def from_torch(state_dict: Mapping[str, Any], config: UNet3DConfig | None = None) -> dict[str, Any]:
    """PyTorch's names and axes -> {"unet": parameters, "pose_encoder": parameters}, as views.

    Takes the video UNet, the pose encoder under `skeleton_adapter.`, or both; a part that is not there at
    all is absent from the result. Without `config`, sizes are read off the arrays. Raises TreeMismatch,
    with the names, where an array is missing, left over or of a wrong shape.
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

    The exact inverse of `from_torch`, bit for bit; raises TreeMismatch as it does. Stored arrays stay where
    they are.
    """
    if unknown := set(params) - {"unet", "pose_encoder"}:
        raise trees.TreeMismatch(f"no PyTorch names for {sorted(unknown)}, only for unet and pose_encoder")
    state_dict: dict[str, Any] = {}
    for part, prefix in (("unet", ""), ("pose_encoder", POSE_PREFIX)):
        if part in params:
            state_dict |= params_to_torch(params[part], prefix)
    from_torch(state_dict)  # names and shapes must be those of a whole model
    return state_dict


def image_unet_to_torch(unet: Mapping[str, Any]) -> dict[str, Any]:
    """What an image model has of a video UNet's parameters, by PyTorch's names and axes."""
    return {name: x for name, x in params_to_torch(unet).items() if not TEMPORAL.search(name)}


def inflate_unet(state_dict: Mapping[str, np.ndarray], config: UNet3DConfig, seed: int) -> dict[str, Any]:
    """An image UNet inflated to clips -> parameters of UNet3D; temporal ones are drawn from `seed`.

    Raises TreeMismatch as `image_unet_from_torch`.
    """
    image = flatten_dict(image_unet_from_torch(state_dict, config), sep="/")
    return unflatten_dict(image | init_temporal(config, jax.random.key(seed)), sep="/")


def image_unet_from_torch(state_dict: Mapping[str, np.ndarray], config: UNet3DConfig) -> dict[str, Any]:
    """Those parameters of UNet3D that an image UNet has.

    Raises TreeMismatch where the arrays are not those of a `UNet2DConditionModel` of this config.
    """
    shapes = flatten_dict(unet_shapes(config), sep="/")
    spatial = {path: shape for path, shape in shapes.items() if not TEMPORAL.search(path)}
    return params_from_torch(state_dict, unflatten_dict(spatial, sep="/"), "image UNet")


def infer_unet_config(state_dict: Mapping[str, Any]) -> UNet3DConfig:
    """The config whose UNet has arrays of these sizes; numbers of heads and groups cannot be seen."""
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
    """A config whose pose encoder has arrays of these sizes (only `block_out_channels` counts)."""
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
    """One more than the largest number that stands in the names at the group of `pattern`."""
    numbers = [int(match[1]) for name in state_dict if (match := re.match(pattern, name))]
    return max(numbers, default=-1) + 1


def _shape(state_dict: Mapping[str, Any], name: str) -> tuple[int, ...]:
    if name not in state_dict:
        found = ", ".join(sorted(state_dict)[: trees.MAX_LISTED]) or "nothing"
        raise trees.TreeMismatch(f"cannot read the model's sizes: {name} is missing (found {found}, ...)")
    return tuple(state_dict[name].shape)
