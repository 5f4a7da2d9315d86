"""Our own names in safetensors: one file for each model, which carries the config. Nothing here needs torch.

unet.safetensors pose_encoder.safetensors      and vae, text_encoder where a stage trained them

Names are paths as in the code (`conv_in/kernel`), axes as in the code (channels last). The metadata of every
file has `format` (fyp_jax), `model`, and as JSON `config` (`UNet3DConfig`) and `provenance`. A large model is
in shards with the usual index (`unet.safetensors.index.json`).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike

from fyp_jax import trees
from fyp_jax.convert.lazy import LazyArray, Weights, read_all
from fyp_jax.convert.safetensors_files import WeightsError, open_safetensors
from fyp_jax.convert.weight_writer import ExportPlan, StateDictFile, index_name, shards_of
from fyp_jax.models.encoders import ENCODERS
from fyp_jax.models.pose_encoder import pose_encoder_shapes
from fyp_jax.models.unet import unet_shapes
from fyp_jax.models.unet_config import UNet3DConfig

FORMAT = "fyp_jax"
REQUIRED = ("unet", "pose_encoder")
MODELS = (*REQUIRED, *ENCODERS)
ENDING = ".safetensors"


def native_plan(weights: Weights) -> ExportPlan:
    """What a folder in this form has; `WeightWriter.write_folder` writes it."""
    return ExportPlan(
        [
            StateDictFile(model + ENDING, flatten_dict(tree, sep="/"), _metadata(weights, model))
            for model, tree in weights.models.items()
        ],
        {},
        {},
    )


def _metadata(weights: Weights, model: str) -> dict[str, str]:
    return {
        "format": FORMAT,
        "model": model,
        "config": json.dumps(weights.config.to_json()),
        "provenance": json.dumps(weights.provenance),
    }


def is_native(folder: Path) -> bool:
    """Whether the UNet is here under our name."""
    return any((folder / name).is_file() for name in (f"unet{ENDING}", index_name(f"unet{ENDING}")))


def open_native(folder: Path) -> Weights:
    """The models of a folder, not yet read.

    Raises WeightsError where a file is missing, damaged or not of this form, TreeMismatch where arrays are
    not those of the config.
    """
    models, configs, provenances = {}, {}, {}
    for model in MODELS:
        if model in REQUIRED or (folder / (model + ENDING)).exists() or _has_index(folder, model):
            flat, metadata = _open_model(folder, model)
            models[model] = unflatten_dict(flat, sep="/")
            try:
                if (metadata["format"], metadata["model"]) != (FORMAT, model):
                    raise ValueError(f"it says {metadata['format']}, {metadata['model']}")
                configs[model] = UNet3DConfig.from_json(json.loads(metadata["config"]))
                provenances[model] = json.loads(metadata["provenance"])
            except (KeyError, ValueError, TypeError, AttributeError) as error:
                raise WeightsError(f"{folder / model}{ENDING}: not in our form ({error})") from error
    if any(config != configs["unet"] for config in configs.values()):
        raise WeightsError(f"{folder}: its files are of models with different configs")
    config = configs["unet"]
    for model, shapes in (("unet", unet_shapes(config)), ("pose_encoder", pose_encoder_shapes(config))):
        trees.check_same(
            flatten_dict(models[model], sep="/"), flatten_dict(shapes, sep="/"), f"{folder / model}{ENDING}"
        )
    return Weights(config, models, provenances["unet"])


def read_native(
    folder: Path, dtype: DTypeLike = np.float32
) -> tuple[UNet3DConfig, dict[str, Any], dict[str, Any]]:
    """Sizes, parameters as `dtype`, and where they are from: what `checkpoint.load_inference` gives.

    Raises as `open_native`.
    """
    weights = open_native(folder)
    return weights.config, read_all(weights.models, dtype), weights.provenance


def _has_index(folder: Path, model: str) -> bool:
    return (folder / index_name(model + ENDING)).exists()


def _open_model(folder: Path, model: str) -> tuple[Mapping[str, LazyArray], dict[str, str]]:
    if not _has_index(folder, model):
        return open_safetensors(folder / (model + ENDING))
    opened = [open_safetensors(file) for file in shards_of(folder / index_name(model + ENDING))]
    arrays = {name: array for part, _ in opened for name, array in part.items()}
    return arrays, opened[0][1]
