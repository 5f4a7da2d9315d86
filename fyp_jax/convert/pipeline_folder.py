"""A Stable Diffusion pipeline as diffusers lays it out: a folder, a Hub id, or one of our own sizes.

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
    inflate_unet,
    image_unet_from_torch,
    params_from_torch,
    image_unet_to_torch,
    params_to_torch,
)
from fyp_jax.convert.weight_writer import ExportPlan, StateDictFile, WeightWriter
from fyp_jax.diffusion.schedule import ScheduleConfig
from fyp_jax.errors import UserError, reason
from fyp_jax.models.encoders import ENCODERS, LatentEncoders
from fyp_jax.models.unet_config import UNet3DConfig

# The VAE's attention has other names in the Flax model and in old PyTorch files than in new ones.
VAE_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


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
    """Reads what a pipeline folder holds, part by part."""

    def __init__(self, name: str, parts: tuple[str, ...] = ENCODERS):
        """Find `name`, downloading the weights of `parts` if it is a Hub id. Raises UserError."""
        self.name = name
        self.path = find_folder(name, parts)

    def json(self, part: str) -> dict[str, Any]:
        """A part's configuration."""
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
        """Sizes of the UNet."""
        return UNet3DConfig.from_json(self.json("unet"))

    def latent_encoders(self, dtype: DTypeLike = jnp.float32) -> LatentEncoders:
        """VAE, text encoder and tokenizer, without weights; they compute in `dtype`."""
        return LatentEncoders.build(
            self.json("vae"), self.json("text_encoder"), self.path / "tokenizer", dtype
        )

    def encoder_params(self, models: LatentEncoders, parts: tuple[str, ...] = ENCODERS) -> dict[str, Any]:
        """Float32 weights of these parts. Raises TreeMismatch where they do not fit the configuration."""
        shapes, params = models.spec.shapes, {}
        for part in parts:
            arrays = self._read(part)
            if part == "vae":
                arrays = {_flax_vae_name(name): _flat_dense(name, value) for name, value in arrays.items()}
            # a constant that old files of the text encoder carry
            arrays = {name: x for name, x in arrays.items() if not name.endswith("position_ids")}
            params[part] = params_from_torch(arrays, shapes[part], f"{self.name}, {part.replace('_', ' ')}")
        return params

    def inflate_unet(self, config: UNet3DConfig, seed: int) -> dict[str, Any]:
        """The image UNet's weights, inflated to `config`: what they lack for clips is drawn from `seed`."""
        return inflate_unet(self._read("unet"), config, seed)

    def image_unet(self, config: UNet3DConfig) -> dict[str, Any]:
        """The image UNet's weights alone, by the names of `UNet3D`."""
        return image_unet_from_torch(self._read("unet"), config)

    def write_with(
        self, params: Mapping[str, Any], folder: Path, changes: Mapping[str, Mapping[str, Any]]
    ) -> None:
        """A new pipeline folder like this one, with the weights `params` (vae, text_encoder, unet).

        `changes` are fields of a part's config.json with other values: {"vae": {"scaling_factor": 0.2}}.
        Weights are safetensors by PyTorch's names; of the UNet, what an image model has. Raises UserError
        where the folder cannot be written, or has something else in it.
        """
        weights = pipeline_state_dicts({part: to_lazy_tree(params[part]) for part in PARTS_WITH_WEIGHTS})
        contents = self.export_plan(weights, changes)
        WeightWriter().write_folder(contents, folder, {"pipeline": self.name}, overwrite=True)

    def contents(
        self,
        replaced: Mapping[str, Mapping[str, LazyArray]],
        changes: Mapping[str, Mapping[str, Any]],
        ending: str = ".safetensors",
    ) -> ExportPlan:
        """What a pipeline folder like this one has, that PyTorch's `StableDiffusionPipeline` opens.

        `replaced` are weights of parts by PyTorch's names; other parts keep theirs. `changes` as for
        `write_with`. Raises UserError where this folder lacks something.
        """
        configs = {part: self.json(part) | dict(changes.get(part, {})) for part in PARTS_WITH_WEIGHTS}
        for name in ("zero_init_temporal", "cross_frame_attention"):  # ours alone
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
        texts = {f"{part}/config.json": config for part, config in configs.items()}
        texts |= {"model_index.json": index, "scheduler/scheduler_config.json": scheduler}
        weights = [
            StateDictFile(f"{part}/{WEIGHT_FILES[part, ending]}", replaced.get(part) or self.stored(part))
            for part in PARTS_WITH_WEIGHTS
        ]
        return ExportPlan(
            weights,
            {name: json.dumps(values, indent=2) for name, values in texts.items()},
            {"tokenizer": self.path / "tokenizer"},
        )

    def stored(self, part: str) -> dict[str, LazyArray]:
        """The weights of a part by PyTorch's present names, not yet read. Raises WeightsError."""
        arrays = open_weights(find_weights(self.path / part))
        if part == "vae":
            return {_torch_vae_name(name): _flat_stored(name, x) for name, x in arrays.items()}
        return {name: x for name, x in arrays.items() if not name.endswith("position_ids")}

    def _read(self, part: str) -> dict[str, np.ndarray]:
        return read_weights(find_weights(self.path / part))


def pipeline_state_dicts(models: Mapping[str, Any]) -> dict[str, dict[str, LazyArray]]:
    """Nested stored arrays of vae, text_encoder or unet by PyTorch's names, as `contents` takes them."""
    weights = {name: params_to_torch(tree) for name, tree in models.items() if name == "text_encoder"}
    if "vae" in models:
        weights["vae"] = {_torch_vae_name(name): x for name, x in params_to_torch(models["vae"]).items()}
    if "unet" in models:
        weights["unet"] = image_unet_to_torch(models["unet"])
    return weights


def _flax_vae_name(name: str) -> str:
    for new, old in VAE_ATTENTION.items():
        name = name.replace(f".attentions.0.{new}.", f".attentions.0.{old}.")
    return name


def _torch_vae_name(name: str) -> str:
    for new, old in VAE_ATTENTION.items():
        name = name.replace(f".attentions.0.{old}.", f".attentions.0.{new}.")
    return name


def _flat_dense(name: str, value: np.ndarray) -> np.ndarray:
    """Older files hold the VAE's attention as 1x1 convolutions."""
    return value[..., 0, 0] if ".attentions." in name and value.ndim == 4 else value


def _flat_stored(name: str, value: LazyArray) -> LazyArray:
    flat = value.shape[:2] if ".attentions." in name and len(value.shape) == 4 else value.shape
    return LazyArray(flat, value.dtype, lambda: value.read().reshape(flat))


def find_folder(name: str, parts: tuple[str, ...]) -> Path:
    """A folder, one of our own sizes, or the local copy of a Hub repository with the weights of `parts`.

    A part is a folder in the repository, "." all of it. Raises UserError.
    """
    if os.path.isdir(name):
        return Path(name)
    own = Path(str(resources.files("fyp_jax").joinpath("assets", "models")))
    if (own / name).is_dir() and Path(name).name == name:
        return own / name
    sizes = ", ".join(sorted(folder.name for folder in own.iterdir() if folder.is_dir()))
    nowhere = f"{name}: no such folder, and no size of ours (we have: {sizes})"
    if name.count("/") != 1 or name.startswith((".", "~", "/")):
        raise UserError(nowhere)
    return _download(name, parts, nowhere)


def _download(hub_id: str, parts: tuple[str, ...], nowhere: str) -> Path:
    """The parts of a Hub repository that are needed, from the Hub or its local cache."""
    configs = ["config.json", "*/config.json", "scheduler/scheduler_config.json", "tokenizer/*"]
    configs += ["vocab.json", "merges.txt", "tokenizer_config.json", "preprocessor_config.json"]  # CLIP's
    try:
        for form in WEIGHT_FORMATS:
            # One after the other: repositories hold each weight in several.
            names = form.files + form.shards
            weights = [str(PurePosixPath(part, name)) for part in parts for name in names]
            folder = Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=configs + weights))
            if all(_has_weights(folder / part) for part in parts):
                return folder
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise UserError(
            f"{nowhere}; as a Hub id it cannot be had ({type(error).__name__}: {reason(error)}); offline, "
            f"download it elsewhere with `hf download {hub_id}` and give the folder"
        ) from error
    raise WeightsError(
        f"{hub_id}: no weights for {', '.join(parts)} in the repository, or offline in its cache"
    )


def _has_weights(folder: Path) -> bool:
    try:
        find_weights(folder)
    except WeightsError:
        return False
    return True
