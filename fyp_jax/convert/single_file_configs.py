"""The configs that a single file of Stable Diffusion lacks, from the shapes of its arrays.

What no array shows is that of the published models: 8 heads (1.x) or heads of 64 channels (2.x and the text
encoders), normalisation in 32 groups, a VAE scaling factor of 0.18215.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from fyp_jax import trees
from fyp_jax.convert.lazy import LazyArray
from fyp_jax.convert.ldm_names import count
from fyp_jax.convert.torch_key_mapping import infer_unet_config
from fyp_jax.diffusion.schedule import ScheduleConfig
from fyp_jax.errors import UserError

log = logging.getLogger(__name__)

HEADS, HEAD_WIDTH, GROUPS = 8, 64, 32
OPEN_CLIP_PADDING = 0
"""Id with which OpenCLIP pads a text; CLIP pads with the end token."""
USUAL_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ROUNDING = 2e-3
"""Relative error up to which betas in a file, maybe as float16, are the usual ones."""
PREDICTION_TYPES = {"eps": "epsilon", "epsilon": "epsilon", "v": "v_prediction", "x0": "sample"}
"""Names of prediction types in a file's metadata and in the original configs, and diffusers' names."""

State = Mapping[str, LazyArray]


def unet_json(state: State, latents: int, is_sd2: bool, sample_size: int, what: str) -> dict[str, Any]:
    """The config of an image UNet with these arrays, for latents of so many channels.

    Raises UserError, whose message starts with `what`, where no text-to-image model has these shapes.
    """
    channels = _shape(state, "conv_in.weight", 4, what)[1]
    if channels != latents:
        raise UserError(
            f"{what}: its UNet takes {channels} channels, as models for inpainting, editing or depth do; "
            f"text-to-video needs one that takes the {latents} channels of the VAE's latents"
        )
    sizes = infer_unet_config(state).to_json()
    heads = [width // HEAD_WIDTH for width in sizes["block_out_channels"]] if is_sd2 else HEADS
    sizes |= {"attention_head_dim": heads, "norm_num_groups": GROUPS, "sample_size": sample_size}
    del sizes["zero_init_temporal"], sizes["cross_frame_attention"]
    return {"_class_name": "UNet2DConditionModel", **sizes}


def vae_json(state: State, what: str) -> dict[str, Any]:
    """The config of a VAE with these arrays. Raises TreeMismatch where they show no sizes."""
    levels = count(state, r"encoder\.down_blocks\.(\d+)\.")
    firsts = [f"encoder.down_blocks.{i}.resnets.0.conv1.weight" for i in range(levels)]
    widths = [_shape(state, name, 4, what)[0] for name in firsts]
    if not widths or any(width % GROUPS or not width for width in widths):
        raise trees.TreeMismatch(f"{what}: the VAE's widths {widths} are not multiples of {GROUPS}")
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": _shape(state, "encoder.conv_in.weight", 4, what)[1],
        "out_channels": _shape(state, "decoder.conv_out.weight", 4, what)[0],
        "latent_channels": _shape(state, "decoder.conv_in.weight", 4, what)[1],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": widths,
        "layers_per_block": count(state, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        "norm_num_groups": GROUPS,
        "scaling_factor": 0.18215,
    }


def text_json(state: State, is_sd2: bool, what: str) -> dict[str, Any]:
    """The config of a text encoder with these arrays. Raises UserError where they show no sizes."""
    vocabulary, width = _shape(state, "text_model.embeddings.token_embedding.weight", 2, what)
    positions = _shape(state, "text_model.embeddings.position_embedding.weight", 2, what)[0]
    hidden = _shape(state, "text_model.encoder.layers.0.mlp.fc1.weight", 2, what)[0]
    if not width or width % HEAD_WIDTH:
        raise UserError(f"{what}: the text encoder's width {width} is not a multiple of {HEAD_WIDTH}")
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "hidden_act": "gelu" if is_sd2 else "quick_gelu",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": count(state, r"text_model\.encoder\.layers\.(\d+)\."),
        "num_attention_heads": width // HEAD_WIDTH,
        "max_position_embeddings": positions,
        "layer_norm_eps": 1e-5,
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": OPEN_CLIP_PADDING if is_sd2 else vocabulary - 1,
    }


def scheduler_json(arrays: State, prediction_type: str, what: str) -> dict[str, Any]:
    """The config of the noise schedule that the arrays outside of all parts tell."""
    values: dict[str, Any] = {
        "_class_name": "DDIMScheduler",
        **USUAL_BETAS,
        "num_train_timesteps": 1000,
        "steps_offset": 1,
        "set_alpha_to_one": False,
        "clip_sample": False,
        "prediction_type": prediction_type,
        # A mark that trainers put beside the weights.
        "rescale_betas_zero_snr": "ztsnr" in arrays,
    }
    if "betas" in arrays:
        betas = arrays["betas"].read().astype(np.float64).reshape(-1)
        usual = ScheduleConfig(**USUAL_BETAS).betas()
        if betas.shape != usual.shape or not np.allclose(betas, usual, rtol=ROUNDING, atol=0):
            log.warning("%s: its own betas are taken, which are not those of Stable Diffusion", what)
            values |= {"num_train_timesteps": betas.size, "trained_betas": betas.tolist()}
    return values


def find_prediction_type(arrays: State, metadata: Mapping[str, str], config: Path) -> str | None:
    """What the UNet predicts, by the file's metadata, a mark beside the weights, or the original config
    beside the file (`v2-inference-v.yaml`); None where nothing says it. Raises UserError."""
    said = PREDICTION_TYPES.get(metadata.get("modelspec.prediction_type", ""))
    if said is None and "v_pred" in arrays:
        return "v_prediction"
    if said is not None or not config.is_file():
        return said
    try:
        params = yaml.safe_load(config.read_text())["model"]["params"]
        return PREDICTION_TYPES[params.get("parameterization", "eps")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise UserError(f"{config}: no config of a Stable Diffusion; move it away ({error!r})") from error


def _shape(state: State, name: str, axes: int, what: str) -> tuple[int, ...]:
    """The shape of an array. Raises TreeMismatch where it is missing or has another number of axes."""
    if name not in state:
        raise trees.TreeMismatch(f"{what}: 1 missing ({name})")
    if len(state[name].shape) != axes:
        raise trees.TreeMismatch(f"{what}: 1 wrong shape ({name} is {state[name].shape}, not of {axes} axes)")
    return state[name].shape
