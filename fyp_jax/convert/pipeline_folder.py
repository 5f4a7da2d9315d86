"""A Stable Diffusion pipeline in the layout of diffusers: a folder, a Hub id, or a bundled model.

model_index.json               the class of each part
vae/ text_encoder/ unet/       config.json and weights
tokenizer/                     vocab.json, merges.txt
scheduler/                     scheduler_config.json
"""

import json
import os
from collections.abc import Mapping
from importlib import metadata, resources
from pathlib import Path, PurePosixPath
from typing import Any

import huggingface_hub
import jax.numpy as jnp
import numpy as np
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from jax.typing import DTypeLike

from fyp_jax.convert.lazy import LazyArray, to_lazy_tree
from fyp_jax.convert.torch_files import WEIGHT_FORMATS, WeightsError, find_weights, open_weights, read_weights
from fyp_jax.convert.torch_key_mapping import (
    image_unet_from_torch,
    image_unet_to_torch,
    inflate_unet,
    params_from_torch,
    params_to_torch,
)
from fyp_jax.convert.weight_writer import ExportPlan, StateDictFile, WeightWriter
from fyp_jax.diffusion.schedule import ScheduleConfig
from fyp_jax.errors import UserError, reason
from fyp_jax.models.encoders import ENCODERS, LatentEncoders
from fyp_jax.models.unet_config import UNet3DConfig

VAE_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
"""Names in the VAE's attention: in PyTorch today, and in old PyTorch files and the Flax model."""

WEIGHT_FILES = {
    ("vae", ".safetensors"): "diffusion_pytorch_model.safetensors",
    ("unet", ".safetensors"): "diffusion_pytorch_model.safetensors",
    ("text_encoder", ".safetensors"): "model.safetensors",
    ("vae", ".bin"): "diffusion_pytorch_model.bin",
    ("unet", ".bin"): "diffusion_pytorch_model.bin",
    ("text_encoder", ".bin"): "pytorch_model.bin",
}
PARTS_WITH_WEIGHTS = ("vae", "text_encoder", "unet")
CLASSES = {
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
}


class PipelineFolder:
    """A pipeline folder, which is read part by part."""

    def __init__(self, name: str, parts: tuple[str, ...] = ENCODERS):
        """Find the folder `name`, and download the weights of `parts` if it is a Hub id. Raises UserError."""
        self.name = name
        self.path = find_folder(name, parts)

    def json(self, part: str) -> dict[str, Any]:
        """The configuration of a part. Raises UserError where it cannot be read."""
        file = self.path / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
        try:
            values = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{self.name}: not a diffusers pipeline folder ({error})") from error
        if not isinstance(values, dict):
            raise UserError(f"{file}: not a JSON object")
        return values

    def schedule(self) -> ScheduleConfig:
        """The noise schedule that the model was trained with."""
        return ScheduleConfig.from_json(self.json("scheduler"))

    def unet_config(self) -> UNet3DConfig:
        """The config of the UNet."""
        return UNet3DConfig.from_json(self.json("unet"))

    def latent_encoders(self, dtype: DTypeLike = jnp.float32) -> LatentEncoders:
        """VAE, text encoder and tokenizer without weights. The models compute in `dtype`."""
        return LatentEncoders.build(
            self.json("vae"), self.json("text_encoder"), self.path / "tokenizer", dtype
        )

    def encoder_params(self, models: LatentEncoders, parts: tuple[str, ...] = ENCODERS) -> dict[str, Any]:
        """Float32 parameters of these parts. Raises TreeMismatch where they do not fit the configuration."""
        shapes, params = models.spec.shapes, {}
        for part in parts:
            state_dict = self._read(part)
            if part == "vae":
                state_dict = {_flax_vae_name(name): _as_dense(name, x) for name, x in state_dict.items()}
            # Old files of the text encoder also hold the position ids, which are constants.
            state_dict = {name: x for name, x in state_dict.items() if not name.endswith("position_ids")}
            what = f"{self.name}, {part.replace('_', ' ')}"
            params[part] = params_from_torch(state_dict, shapes[part], what)
        return params

    def inflate_unet(self, config: UNet3DConfig, seed: int) -> dict[str, Any]:
        """The image UNet's parameters, and temporal layers of `config` that are initialised from `seed`."""
        return inflate_unet(self._read("unet"), config, seed)

    def image_unet(self, config: UNet3DConfig) -> dict[str, Any]:
        """The image UNet's parameters alone, by the names of `UNet3D`."""
        return image_unet_from_torch(self._read("unet"), config)

    def write_with(
        self, params: Mapping[str, Any], folder: Path, config_changes: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """Write a pipeline folder like this one, with the parameters `params` (vae, text_encoder, unet).

        `config_changes` are new values for fields of a part's config.json, {"vae": {"scaling_factor": 0.2}}.
        The weights are written as safetensors with PyTorch's names, the UNet's without its temporal layers.
        Raises UserError where the folder cannot be written, or holds other files.
        """
        weights = pipeline_state_dicts({part: to_lazy_tree(params[part]) for part in PARTS_WITH_WEIGHTS})
        plan = self.export_plan(weights, config_changes)
        WeightWriter().write_folder(plan, folder, {"pipeline": self.name}, overwrite=True)

    def export_plan(
        self,
        replaced: Mapping[str, Mapping[str, LazyArray]],
        config_changes: Mapping[str, Mapping[str, Any]],
        suffix: str = ".safetensors",
    ) -> ExportPlan:
        """The contents of a folder like this one, which PyTorch's `StableDiffusionPipeline` can open.

        `replaced` has new weights of some parts, under PyTorch's names; the other parts keep their weights.
        `config_changes` is as for `write_with`. Raises UserError where this folder lacks a file.
        """
        configs = {part: self.json(part) | dict(config_changes.get(part, {})) for part in PARTS_WITH_WEIGHTS}
        for name in ("zero_init_temporal", "cross_frame_attention"):  # fields that only fyp_jax knows
            configs["unet"].pop(name, None)
        scheduler = self.json("scheduler")
        index = {
            "_class_name": "StableDiffusionPipeline",
            "_diffusers_version": metadata.version("diffusers"),
            **CLASSES,
            "scheduler": ["diffusers", scheduler.get("_class_name", "PNDMScheduler")],
            "requires_safety_checker": False,
        }
        if not (self.path / "tokenizer").is_dir():
            raise UserError(f"{self.name}: has no tokenizer")
        json_files = {f"{part}/config.json": config for part, config in configs.items()}
        json_files |= {"model_index.json": index, "scheduler/scheduler_config.json": scheduler}
        weights = [
            StateDictFile(
                f"{part}/{WEIGHT_FILES[part, suffix]}", replaced.get(part) or self.lazy_state_dict(part)
            )
            for part in PARTS_WITH_WEIGHTS
        ]
        return ExportPlan(
            weights,
            {name: json.dumps(values, indent=2) for name, values in json_files.items()},
            {"tokenizer": self.path / "tokenizer"},
        )

    def lazy_state_dict(self, part: str) -> dict[str, LazyArray]:
        """The weights of a part under PyTorch's present names, not read yet. Raises WeightsError."""
        state_dict = open_weights(find_weights(self.path / part))
        if part == "vae":
            return {_torch_vae_name(name): _as_dense_lazy(name, x) for name, x in state_dict.items()}
        return {name: x for name, x in state_dict.items() if not name.endswith("position_ids")}

    def _read(self, part: str) -> dict[str, np.ndarray]:
        return read_weights(find_weights(self.path / part))


def pipeline_state_dicts(models: Mapping[str, Any]) -> dict[str, dict[str, LazyArray]]:
    """The state dicts, with PyTorch's names, of nested parameters of "vae", "text_encoder" and "unet".

    The UNet's temporal layers are left out.
    """
    state_dicts = {name: params_to_torch(tree) for name, tree in models.items() if name == "text_encoder"}
    if "vae" in models:
        state_dicts["vae"] = {_torch_vae_name(name): x for name, x in params_to_torch(models["vae"]).items()}
    if "unet" in models:
        state_dicts["unet"] = image_unet_to_torch(models["unet"])
    return state_dicts


def _flax_vae_name(name: str) -> str:
    for new, old in VAE_ATTENTION.items():
        name = name.replace(f".attentions.0.{new}.", f".attentions.0.{old}.")
    return name


def _torch_vae_name(name: str) -> str:
    for new, old in VAE_ATTENTION.items():
        name = name.replace(f".attentions.0.{old}.", f".attentions.0.{new}.")
    return name


def _as_dense(name: str, value: np.ndarray) -> np.ndarray:
    """The kernel of a dense layer: old files hold the VAE's attention as 1x1 convolutions."""
    return value[..., 0, 0] if ".attentions." in name and value.ndim == 4 else value


def _as_dense_lazy(name: str, value: LazyArray) -> LazyArray:
    shape = value.shape[:2] if ".attentions." in name and len(value.shape) == 4 else value.shape
    return LazyArray(shape, value.dtype, lambda: value.read().reshape(shape))


def find_folder(name: str, parts: tuple[str, ...]) -> Path:
    """The path of a folder, of a bundled model, or of the local copy of a Hub repository.

    Of a Hub repository, the configs and the weights of `parts` are downloaded. A part is a folder in the
    repository; "." is the repository's top folder. Raises UserError where there is nothing of this name.
    """
    if os.path.isdir(name):
        return Path(name)
    bundled = Path(str(resources.files("fyp_jax").joinpath("assets", "models")))
    if (bundled / name).is_dir() and Path(name).name == name:
        return bundled / name
    names = ", ".join(sorted(folder.name for folder in bundled.iterdir() if folder.is_dir()))
    not_found = f"{name}: no such folder, and no bundled model of this name (there are: {names})"
    if name.count("/") != 1 or name.startswith((".", "~", "/")):
        raise UserError(not_found)
    return _download(name, parts, not_found)


def _download(hub_id: str, parts: tuple[str, ...], not_found: str) -> Path:
    """The local copy of a Hub repository with the weights of `parts`, from the Hub or its local cache."""
    configs = ["config.json", "*/config.json", "scheduler/scheduler_config.json", "tokenizer/*"]
    configs += ["vocab.json", "merges.txt", "tokenizer_config.json", "preprocessor_config.json"]  # CLIP's
    try:
        # One format at a time, because repositories hold the same weights in several.
        for weight_format in WEIGHT_FORMATS:
            names = weight_format.files + weight_format.shards
            weights = [str(PurePosixPath(part, name)) for part in parts for name in names]
            folder = Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=configs + weights))
            if all(_has_weights(folder / part) for part in parts):
                return folder
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise UserError(
            f"{not_found}; as a Hub id it cannot be downloaded ({type(error).__name__}: {reason(error)}); "
            f"if this machine is offline, run `hf download {hub_id}` on another one and give the folder"
        ) from error
    raise WeightsError(
        f"{hub_id}: no weights for {', '.join(parts)} in the Hub repository (offline: in its local cache)"
    )


def _has_weights(folder: Path) -> bool:
    try:
        find_weights(folder)
    except WeightsError:
        return False
    return True
