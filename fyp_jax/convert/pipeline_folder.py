"""A Stable Diffusion pipeline in the layout of diffusers: a folder, a Hub id, or a bundled model.

model_index.json               the class of each part
vae/ text_encoder/ unet/       config.json and weights
tokenizer/                     vocab.json, merges.txt
scheduler/                     scheduler_config.json
"""

import dataclasses
import json
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import tokenizers
from jax.typing import DTypeLike

from fyp_jax import trees
from fyp_jax.convert.encoder_names import (
    as_dense_kernel,
    flax_vae_name,
    present_text_names,
    torch_vae_name,
)
from fyp_jax.convert.folders import find_folder, find_tokenizer
from fyp_jax.convert.lazy import LazyArray
from fyp_jax.convert.recognise import FATEZERO_CLASS, describe_content, describe_folder
from fyp_jax.convert.torch_files import find_weights, open_weights, variants
from fyp_jax.convert.torch_key_mapping import (
    image_unet_from_torch,
    image_unet_to_torch,
    inflate_unet,
    params_from_torch,
    params_to_torch,
    torch_layout,
)
from fyp_jax.convert.weight_writer import ExportPlan, StateDictFile
from fyp_jax.diffusion.schedule import ScheduleConfig
from fyp_jax.errors import UserError
from fyp_jax.models.encoders import ENCODERS, LatentEncoders
from fyp_jax.models.unet_config import UNet3DConfig, with_image_blocks

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


VIDEO_UNET = "UNet3DConditionModel"
"""Class of the UNet that Follow Your Pose and Tune-A-Video train, in its config."""


class PipelineOptions(NamedTuple):
    """What the name of a pipeline leaves open; None is what the pipeline itself says."""

    variant: str | None = None
    """Which of several sets of weights: fp16, bf16, non_ema, ... (of a single file: ema)."""
    tokenizer: str | None = None
    """Folder or Hub id of the tokenizer, which a single file does not have."""
    prediction_type: str | None = None
    """What the UNet predicts: epsilon, v_prediction or sample."""


class PipelineFolder:
    """A pipeline folder, which is read part by part."""

    def __init__(self, name: str, parts: tuple[str, ...] = ENCODERS, options: PipelineOptions | None = None):
        """Find the folder `name`, and download the weights of `parts` if it is a Hub id. Raises UserError."""
        self.name = name
        self.options = options or PipelineOptions()
        variant = self.options.variant
        self.path = find_folder(name, parts, variant)
        if variant is not None and parts and (Path(name).is_dir() or "unet" in parts):
            there = {part: variants(self.path / part) for part in PARTS_WITH_WEIGHTS}
            if not any(variant in found for found in there.values()):
                listed = "; ".join(f"{part}: {', '.join(found)}" for part, found in there.items() if found)
                raise UserError(f"{name}: no part has the variant {variant} (there are: {listed or 'none'})")

    def download(self, parts: tuple[str, ...], optional: tuple[str, ...] = ()) -> None:
        """Have also the weights of `parts`, and the top folder's files that match the patterns `optional`.

        A folder of this machine has all that it will ever have. Raises UserError as the constructor.
        """
        self.path = find_folder(self.name, parts, self.options.variant, optional)

    @property
    def tokenizer_folder(self) -> Path:
        """The folder with the tokenizer's vocabulary. Raises UserError where `options` name another one that
        is not there."""
        if self.options.tokenizer is not None:
            return find_tokenizer(self.options.tokenizer)
        return self.path / "tokenizer"

    @property
    def has_video_unet(self) -> bool:
        """Whether the UNet has temporal layers: the folder was written after training on videos."""
        return self.json("unet").get("_class_name") in (VIDEO_UNET, FATEZERO_CLASS)

    def json(self, part: str) -> dict[str, Any]:
        """The configuration of a part. Raises UserError where it cannot be read."""
        file = self.path / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
        try:
            values = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            what = describe_folder(self.path) or describe_content(file)
            raise UserError(
                f"{self.name}: {what}" if what else f"{self.name}: not a diffusers pipeline folder ({error})"
            ) from error
        if not isinstance(values, dict):
            raise UserError(f"{file}: not a JSON object")
        return values

    def schedule(self) -> ScheduleConfig:
        """The noise schedule that the model was trained with."""
        schedule = ScheduleConfig.from_json(self.json("scheduler"))
        predicts = self.options.prediction_type
        return schedule if predicts is None else dataclasses.replace(schedule, prediction_type=predicts)

    def unet_config(self) -> UNet3DConfig:
        """The config of the UNet."""
        return UNet3DConfig.from_json(self.json("unet"))

    def latent_encoders(self, dtype: DTypeLike = jnp.float32) -> LatentEncoders:
        """VAE, text encoder and tokenizer without weights. The models compute in `dtype`.

        Raises UserError where they cannot be built, or a tokenizer that `options` name does not suit the text
        encoder.
        """
        vae, text, folder = self.json("vae"), self.json("text_encoder"), self.tokenizer_folder
        encoders = LatentEncoders.build(vae, text, folder, dtype, self.padding)
        if folder != self.path / "tokenizer":
            found = tokenizers.Tokenizer.from_str(encoders.spec.tokenizer).get_vocab_size()
            if found != text.get("vocab_size"):
                raise UserError(
                    f"{folder}: a tokenizer of {found} tokens, but the text encoder of {self.name} has "
                    f"{text.get('vocab_size')}; give its own as tokenizer=FOLDER"
                )
        return encoders

    @property
    def padding(self) -> int | None:
        """Id of the padding token, where it is not the tokenizer's own."""
        return None

    def encoder_params(self, models: LatentEncoders, parts: tuple[str, ...] = ENCODERS) -> dict[str, Any]:
        """Float32 parameters of these parts. Raises TreeMismatch where they do not fit the configuration."""
        params = {}
        for part in parts:
            lazy = self._encoder_arrays(part)
            self._check_encoder(models, part, lazy)
            state_dict = {name: x.astype(np.float32, name).read() for name, x in lazy.items()}
            params[part] = params_from_torch(state_dict, models.spec.shapes[part], self._what(part))
        return params

    def check_encoders(self, models: LatentEncoders) -> None:
        """Raise TreeMismatch unless the encoders' weights fit the configuration; none are read."""
        for part in ENCODERS:
            self._check_encoder(models, part, self._encoder_arrays(part))

    def _check_encoder(self, models: LatentEncoders, part: str, arrays: Mapping[str, LazyArray]) -> None:
        trees.check_same(arrays, torch_layout(models.spec.shapes[part]), self._what(part))

    def _encoder_arrays(self, part: str) -> dict[str, LazyArray]:
        """The weights of an encoder, not read yet, under the names that our models have in PyTorch."""
        arrays = self.lazy_state_dict(part)
        return {flax_vae_name(name): x for name, x in arrays.items()} if part == "vae" else arrays

    def _what(self, part: str) -> str:
        return f"{self.name}, {part.replace('_', ' ')}"

    def inflate_unet(self, config: UNet3DConfig, seed: int) -> dict[str, Any]:
        """The image UNet's parameters, and temporal layers of `config` that are initialised from `seed`."""
        return inflate_unet(self._read("unet"), config, seed)

    def image_unet(self, config: UNet3DConfig) -> dict[str, Any]:
        """The image UNet's parameters alone, by the names of `UNet3D`."""
        return image_unet_from_torch(self._read("unet"), config)

    def export_plan(
        self,
        replaced: Mapping[str, Mapping[str, LazyArray]],
        config_changes: Mapping[str, Mapping[str, Any]],
        suffix: str = ".safetensors",
    ) -> ExportPlan:
        """The contents of a folder like this one, which PyTorch's `StableDiffusionPipeline` can open.

        `replaced` has new weights of some parts, under PyTorch's names; the other parts keep their weights.
        `config_changes` are new values for fields of a part's config.json, {"vae": {"scaling_factor": 0.2}}.
        Raises UserError where this folder lacks a file.
        """
        configs = {part: self.json(part) | dict(config_changes.get(part, {})) for part in PARTS_WITH_WEIGHTS}
        for name in ("zero_init_temporal", "cross_frame_attention"):  # fields that only fyp_jax knows
            configs["unet"].pop(name, None)
        configs["unet"] = with_image_blocks(configs["unet"]) | {"_class_name": CLASSES["unet"][1]}
        scheduler = self.json("scheduler")
        if self.options.prediction_type is not None:
            scheduler["prediction_type"] = self.options.prediction_type
        index = {
            "_class_name": "StableDiffusionPipeline",
            "_diffusers_version": metadata.version("diffusers"),
            **CLASSES,
            "scheduler": ["diffusers", scheduler.get("_class_name", "PNDMScheduler")],
            "requires_safety_checker": False,
        }
        if not self.tokenizer_folder.is_dir():
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
            {"tokenizer": self.tokenizer_folder},
        )

    def lazy_state_dict(self, part: str) -> dict[str, LazyArray]:
        """The weights of a part under PyTorch's present names, not read yet. Raises WeightsError."""
        state_dict = self._open(part)
        if part == "vae":
            return {torch_vae_name(name): as_dense_kernel(name, x) for name, x in state_dict.items()}
        if part == "text_encoder":
            return present_text_names(state_dict)
        return state_dict

    def _open(self, part: str) -> dict[str, LazyArray]:
        return open_weights(find_weights(self.path / part, self.options.variant))

    def _read(self, part: str) -> dict[str, np.ndarray]:
        """The weights of a part as float32, under PyTorch's present names."""
        return {name: x.astype(np.float32, name).read() for name, x in self.lazy_state_dict(part).items()}


def pipeline_state_dicts(models: Mapping[str, Any]) -> dict[str, dict[str, LazyArray]]:
    """The state dicts, with PyTorch's names, of nested parameters of "vae", "text_encoder" and "unet".

    The UNet's temporal layers are left out.
    """
    state_dicts = {name: params_to_torch(tree) for name, tree in models.items() if name == "text_encoder"}
    if "vae" in models:
        state_dicts["vae"] = {torch_vae_name(name): x for name, x in params_to_torch(models["vae"]).items()}
    if "unet" in models:
        state_dicts["unet"] = image_unet_to_torch(models["unet"])
    return state_dicts
