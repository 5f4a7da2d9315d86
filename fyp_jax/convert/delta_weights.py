"""Delta weights: what the two stages add to a Stable Diffusion, in one file of its pipeline folder.

FOLDER/follow_your_pose.safetensors (or its shards) holds the pose encoder, and those arrays of the video UNet
that differ from the folder's image UNet or are missing there: temporal layers and trained queries. Names are
parameter paths (`unet/...`, `pose_encoder/...`). PyTorch's diffusers can still open the folder, and it holds
no array twice. The bundled model `mini` is stored in this way, and so is the export format `pipeline`.
"""

import json
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike

from fyp_jax import trees
from fyp_jax.convert.lazy import Weights, read_tree, to_lazy
from fyp_jax.convert.native_safetensors import FORMAT, has_safetensors, open_sharded
from fyp_jax.convert.pipeline_folder import PipelineFolder
from fyp_jax.convert.weight_writer import StateDictFile, index_name
from fyp_jax.models.pose_encoder import pose_encoder_shapes
from fyp_jax.models.unet import TEMPORAL, unet_shapes
from fyp_jax.models.unet_config import UNet3DConfig

DELTA = "follow_your_pose"
DELTA_FILE = f"{DELTA}.safetensors"
DELTA_PATTERNS = (f"{DELTA}*.safetensors", index_name(DELTA_FILE))
"""The file or its shards, as they are downloaded from the Hub."""


def exported_delta(weights: Weights) -> StateDictFile:
    """The delta weights beside an image UNet that has all spatial layers of these weights, not read yet: the
    temporal layers and the pose encoder."""
    flat: dict[str, Any] = flatten_dict(weights.models["unet"], sep="/")
    delta = {f"unet/{path}": x for path, x in flat.items() if TEMPORAL.search(path)}
    pose: dict[str, Any] = flatten_dict(weights.models["pose_encoder"], sep="/")
    delta |= {f"pose_encoder/{path}": x for path, x in pose.items()}
    metadata = {
        "format": FORMAT,
        "config": json.dumps(weights.config.to_json()),
        "provenance": json.dumps(weights.provenance),
    }
    return StateDictFile(DELTA_FILE, delta, metadata)


def delta_weights(
    params: Mapping[str, Any], image_unet: Mapping[str, Any], dtype: DTypeLike, provenance: Mapping[str, Any]
) -> StateDictFile:
    """The delta weights of {"unet": ..., "pose_encoder": ...}, compared with the nested `image_unet`.

    Arrays are compared after both sides are rounded to `dtype`.
    """
    image: dict[str, Any] = flatten_dict(image_unet, sep="/")
    unet: dict[str, Any] = flatten_dict(params["unet"], sep="/")
    pose_encoder: dict[str, Any] = flatten_dict(params["pose_encoder"], sep="/")
    delta = {}
    for path, x in unet.items():
        rounded = np.asarray(x).astype(dtype)
        if TEMPORAL.search(path) or not np.array_equal(rounded, np.asarray(image[path]).astype(dtype)):
            delta[f"unet/{path}"] = to_lazy(rounded)
    delta |= {f"pose_encoder/{path}": to_lazy(x) for path, x in pose_encoder.items()}
    return StateDictFile(DELTA_FILE, delta, {"format": FORMAT, "provenance": json.dumps(provenance)})


def read_delta_weights(
    folder: PipelineFolder, dtype: DTypeLike = jnp.float32
) -> tuple[UNet3DConfig, dict[str, Any], dict[str, Any]] | None:
    """The UNet's config, {"unet": ..., "pose_encoder": ...} as `dtype`, and their provenance.

    None for a folder without delta weights. Raises WeightsError where the file cannot be read, TreeMismatch
    where it does not fit the folder's image UNet.
    """
    folder.download((), DELTA_PATTERNS)
    if not has_safetensors(folder.path, DELTA):
        return None
    folder.download(("unet",), DELTA_PATTERNS)
    arrays, metadata = open_sharded(folder.path, DELTA)
    config = folder.unet_config()
    if "config" in metadata:  # with the fields that diffusers does not know
        config = UNet3DConfig.from_json(json.loads(metadata["config"]))
    delta = read_tree(arrays, dtype)
    image: dict[str, Any] = flatten_dict(folder.image_unet(config), sep="/")
    for path, x in image.items():  # one by one, so that no second copy of the model is in memory
        image[path] = np.asarray(x).astype(dtype)
    unet = image | flatten_dict(delta["unet"], sep="/")
    params = {"unet": unflatten_dict(unet, sep="/"), "pose_encoder": delta["pose_encoder"]}
    shapes = {"unet": unet_shapes(config), "pose_encoder": pose_encoder_shapes(config)}
    trees.check_same(
        flatten_dict(params, sep="/"), flatten_dict(shapes, sep="/"), str(folder.path / DELTA_FILE)
    )
    return config, params, json.loads(metadata.get("provenance", "{}"))


def read_delta_provenance(folder: PipelineFolder) -> dict[str, Any]:
    """The provenance of a folder's delta weights, which are not read; {} without them or without one."""
    folder.download((), DELTA_PATTERNS)
    if not has_safetensors(folder.path, DELTA):
        return {}
    return json.loads(open_sharded(folder.path, DELTA)[1].get("provenance", "{}"))
