"""The native format: safetensors with the parameter names and axes of fyp_jax. Nothing here needs torch.

A folder has unet.safetensors and pose_encoder.safetensors, and vae.safetensors or text_encoder.safetensors if
a stage trained that model. Array names are parameter paths (`conv_in/kernel`), and images are channels last.
The metadata of every file has `format` (fyp_jax), `model`, and as JSON `config` (`UNet3DConfig`) and
`provenance`. A large model is sharded, with the usual index (`unet.safetensors.index.json`).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike

from fyp_jax import trees
from fyp_jax.convert.lazy import LazyArray, Weights, read_tree
from fyp_jax.convert.safetensors_files import WeightsError, open_safetensors
from fyp_jax.convert.weight_writer import ExportPlan, StateDictFile, index_name, shard_files
from fyp_jax.models.encoders import ENCODERS
from fyp_jax.models.pose_encoder import pose_encoder_shapes
from fyp_jax.models.unet import unet_shapes
from fyp_jax.models.unet_config import UNet3DConfig

FORMAT = "fyp_jax"
REQUIRED = ("unet", "pose_encoder")
MODELS = (*REQUIRED, *ENCODERS)
SUFFIX = ".safetensors"


def native_plan(weights: Weights) -> ExportPlan:
    """The contents of a folder in the native format; `WeightWriter.write_folder` writes it."""
    files = []
    for model, tree in weights.models.items():
        flat: dict[str, Any] = flatten_dict(tree, sep="/")
        files.append(StateDictFile(model + SUFFIX, flat, _metadata(weights, model)))
    return ExportPlan(files)


def _metadata(weights: Weights, model: str) -> dict[str, str]:
    return {
        "format": FORMAT,
        "model": model,
        "config": json.dumps(weights.config.to_json()),
        "provenance": json.dumps(weights.provenance),
    }


def is_native(folder: Path) -> bool:
    """Whether a folder has a UNet in the native format, by its file name."""
    return has_safetensors(folder, "unet")


def open_native(folder: Path) -> Weights:
    """The models of a folder in the native format, not read yet.

    Raises WeightsError where a file is missing, damaged or in another format, TreeMismatch where its arrays
    do not have the names and shapes of its config.
    """
    models, configs, provenances = {}, {}, {}
    for model in MODELS:
        if model in REQUIRED or has_safetensors(folder, model):
            flat, metadata = open_sharded(folder, model)
            models[model] = unflatten_dict(flat, sep="/")
            try:
                if (metadata["format"], metadata["model"]) != (FORMAT, model):
                    raise ValueError(f"format {metadata['format']}, model {metadata['model']}")
                configs[model] = UNet3DConfig.from_json(json.loads(metadata["config"]))
                provenances[model] = json.loads(metadata["provenance"])
            except (KeyError, ValueError, TypeError, AttributeError) as error:
                raise WeightsError(f"{folder / model}{SUFFIX}: not the native format ({error})") from error
    if any(config != configs["unet"] for config in configs.values()):
        raise WeightsError(f"{folder}: its files have different configs")
    config = configs["unet"]
    for model, shapes in (("unet", unet_shapes(config)), ("pose_encoder", pose_encoder_shapes(config))):
        trees.check_same(
            flatten_dict(models[model], sep="/"), flatten_dict(shapes, sep="/"), f"{folder / model}{SUFFIX}"
        )
    return Weights(config, models, provenances["unet"])


def read_native(
    folder: Path, dtype: DTypeLike = np.float32
) -> tuple[UNet3DConfig, dict[str, Any], dict[str, Any]]:
    """The UNet's config, all parameters as `dtype`, and their provenance, as `load_inference` gives them.

    Raises as `open_native`.
    """
    weights = open_native(folder)
    return weights.config, read_tree(weights.models, dtype), weights.provenance


def has_safetensors(folder: Path, model: str) -> bool:
    """Whether a folder has MODEL.safetensors, or the index of its shards."""
    return any((folder / name).is_file() for name in (model + SUFFIX, index_name(model + SUFFIX)))


def open_sharded(folder: Path, model: str) -> tuple[Mapping[str, LazyArray], dict[str, str]]:
    """The arrays of MODEL.safetensors or of its shards, not read yet, and the metadata. Raises
    WeightsError."""
    index = folder / index_name(model + SUFFIX)
    if not index.exists():
        return open_safetensors(folder / (model + SUFFIX))
    shards = [open_safetensors(file) for file in shard_files(index)]
    arrays = {name: array for shard, _ in shards for name, array in shard.items()}
    return arrays, shards[0][1]
