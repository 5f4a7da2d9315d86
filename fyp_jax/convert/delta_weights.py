"""What the two stages add to a Stable Diffusion, in one file of its pipeline folder: our mini model ships so.

FOLDER/follow_your_pose.safetensors has the pose encoder, and those arrays of the video UNet that the folder's
image UNet has not: temporal layers and trained queries. Names are paths as in the code (`unet/...`,
`pose_encoder/...`). So the folder opens in PyTorch's diffusers too, and holds nothing twice.
"""

import json
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike

from fyp_jax import trees
from fyp_jax.convert.lazy import all_in_memory, read_all
from fyp_jax.convert.pipeline_folder import PipelineFolder
from fyp_jax.convert.safetensors_files import open_safetensors
from fyp_jax.convert.weight_writer import StateDictFile
from fyp_jax.models.pose_encoder import pose_encoder_shapes
from fyp_jax.models.unet import TEMPORAL, unet_shapes
from fyp_jax.models.unet_config import UNet3DConfig

FILE = "follow_your_pose.safetensors"


def delta_weights(
    params: Mapping[str, Any], image_unet: Mapping[str, Any], dtype: DTypeLike, provenance: Mapping[str, Any]
) -> StateDictFile:
    """Of {"unet", "pose_encoder"} what the image UNet, rounded to `dtype`, lacks or has otherwise."""
    image, parts = flatten_dict(image_unet, sep="/"), {}
    for path, x in flatten_dict(params["unet"], sep="/").items():
        rounded = np.asarray(x).astype(dtype)
        if TEMPORAL.search(path) or not np.array_equal(rounded, np.asarray(image[path]).astype(dtype)):
            parts[f"unet/{path}"] = rounded
    parts |= {
        f"pose_encoder/{path}": np.asarray(x)
        for path, x in flatten_dict(params["pose_encoder"], sep="/").items()
    }
    return StateDictFile(
        FILE,
        flatten_dict(all_in_memory(parts), sep="/"),
        {"format": "fyp_jax", "provenance": json.dumps(provenance)},
    )


def read_delta_weights(
    folder: PipelineFolder, dtype: DTypeLike = jnp.float32
) -> tuple[UNet3DConfig, dict[str, Any], dict[str, Any]] | None:
    """Sizes, {"unet", "pose_encoder"} as `dtype`, where they are from; None for a folder without the file.

    Raises WeightsError where it cannot be read, TreeMismatch where it does not fit the folder's UNet.
    """
    file = folder.path / FILE
    if not file.is_file():
        return None
    arrays, metadata = open_safetensors(file)
    config = folder.unet_config()
    parts = read_all(arrays, dtype)
    unet = flatten_dict(folder.image_unet(config), sep="/") | flatten_dict(parts["unet"], sep="/")
    params = {"unet": unflatten_dict(unet, sep="/"), "pose_encoder": parts["pose_encoder"]}
    shapes = {"unet": unet_shapes(config), "pose_encoder": pose_encoder_shapes(config)}
    trees.check_same(flatten_dict(params, sep="/"), flatten_dict(shapes, sep="/"), str(file))
    return config, params, json.loads(metadata.get("provenance", "{}"))
