"""The pose encoder as `T2IAdapter` (`full_adapter`) of PyTorch's diffusers, which is the same network.

A `T2IAdapter` groups the blocks by level: the published `body.3.block1` is `adapter.body.1.resnets.1.block1`
there. The 1x1 convolution that changes the width, `body.2.in_conv`, belongs to the level:
`adapter.body.1.in_conv`.
"""

import json
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from fyp_jax import trees
from fyp_jax.convert.lazy import Weights
from fyp_jax.convert.torch_files import WeightsError, find_weights, read_weights
from fyp_jax.convert.torch_key_mapping import POSE_PREFIX, params_to_torch, torch_layout
from fyp_jax.convert.weight_writer import ExportPlan, StateDictFile
from fyp_jax.models.pose_encoder import DOWNSCALE, pose_encoder_shapes
from fyp_jax.models.unet_config import UNet3DConfig

PREFIX = "adapter."
WEIGHT_FILE = "diffusion_pytorch_model.safetensors"
NUM_RES_BLOCKS = 2
"""Number of residual blocks of a level."""
RGB_CHANNELS = 3


def t2i_name(name: str) -> str:
    """The name in a `T2IAdapter` of an array that has this name in a `pose_encoder.pth`."""
    block = re.fullmatch(r"body\.(\d+)\.(.*)", name)
    if block is None:
        return PREFIX + name
    level, i = divmod(int(block[1]), NUM_RES_BLOCKS)
    inner = block[2] if block[2].startswith("in_conv.") else f"resnets.{i}.{block[2]}"
    return f"{PREFIX}body.{level}.{inner}"


def t2i_config(config: UNet3DConfig) -> dict[str, Any]:
    """The contents of `config.json` for the adapter that fits a UNet."""
    return {
        "_class_name": "T2IAdapter",
        "_diffusers_version": metadata.version("diffusers"),
        "adapter_type": "full_adapter",
        "channels": list(config.block_out_channels),
        "downscale_factor": DOWNSCALE,
        "in_channels": RGB_CHANNELS,
        "num_res_blocks": NUM_RES_BLOCKS,
    }


def t2i_plan(weights: Weights) -> ExportPlan:
    """The contents of a folder that `T2IAdapter.from_pretrained` can open."""
    pose = params_to_torch(weights.models["pose_encoder"])
    return ExportPlan(
        [StateDictFile(WEIGHT_FILE, {t2i_name(name): x for name, x in pose.items()})],
        {"config.json": json.dumps(t2i_config(weights.config), indent=2)},
    )


def is_t2i(state_dict: Mapping[str, Any]) -> bool:
    """Whether the names are those of a `T2IAdapter`."""
    return any(name.startswith(PREFIX) for name in state_dict)


def from_t2i(state_dict: Mapping[str, np.ndarray], config: UNet3DConfig) -> dict[str, np.ndarray]:
    """The arrays of a `T2IAdapter` under the names of a published pose encoder (`skeleton_adapter...`).

    Raises TreeMismatch, with the adapter's names, where names or shapes do not fit `config`.
    """
    layout = torch_layout(pose_encoder_shapes(config))
    trees.check_same(state_dict, {t2i_name(name): entry for name, entry in layout.items()}, "T2I-Adapter")
    return {POSE_PREFIX + name: state_dict[t2i_name(name)] for name in layout}


def read_t2i_folder(folder: Path, config: UNet3DConfig) -> dict[str, np.ndarray]:
    """The weights of a `T2IAdapter` folder, under the adapter's names.

    Raises WeightsError where the folder is not one, or its adapter is not a `full_adapter` that fits a UNet
    of `config`.
    """
    try:
        found = json.loads((folder / "config.json").read_text())
        class_name = found["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise WeightsError(f"{folder}: not a T2IAdapter folder ({error})") from error
    expected = t2i_config(config)
    del expected["_diffusers_version"]
    different = {
        name: found.get(name, value) for name, value in expected.items() if found.get(name, value) != value
    }
    if different:
        needed = {name: expected[name] for name in different}
        raise WeightsError(f"{folder}: a {class_name} with {different}, but the UNet needs {needed}")
    return read_weights(find_weights(folder))
