"""What the published sampling code opens: the parts of a pipeline as diffusers 0.11.1 has them.

That version names the VAE's attention otherwise, and the published code adds changes of its own. The tables
are the arguments of the classes of diffusers 0.11.1 (`__init__` of UNet2DConditionModel, AutoencoderKL,
PNDMScheduler and DDIMScheduler, StableDiffusionPipeline).
"""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fyp_jax.convert.encoder_names import flax_vae_name
from fyp_jax.convert.torch_files import find_weights, open_weights
from fyp_jax.convert.weight_writer import ExportPlan
from fyp_jax.errors import UserError
from fyp_jax.models.unet_config import FIXED, UNet3DConfig
from fyp_jax.trees import list_names

log = logging.getLogger(__name__)

VERSION = "0.11.1"


def _keys(text: str) -> frozenset[str]:
    return frozenset(text.split())


CONFIG_KEYS = {
    # `mid_block_type` is left out: the published UNet has a type of its own, and stops at any other.
    "unet/config.json": _keys("""
        sample_size in_channels out_channels center_input_sample flip_sin_to_cos freq_shift down_block_types
        up_block_types only_cross_attention block_out_channels layers_per_block downsample_padding
        mid_block_scale_factor act_fn norm_num_groups norm_eps cross_attention_dim attention_head_dim
        dual_cross_attention use_linear_projection class_embed_type num_class_embeds upcast_attention
        resnet_time_scale_shift
    """),
    "vae/config.json": _keys("""
        in_channels out_channels down_block_types up_block_types block_out_channels layers_per_block act_fn
        latent_channels norm_num_groups sample_size
    """),
    "scheduler/scheduler_config.json": _keys("""
        num_train_timesteps beta_start beta_end beta_schedule trained_betas skip_prk_steps set_alpha_to_one
        prediction_type steps_offset clip_sample
    """),
    "model_index.json": _keys("""
        vae text_encoder tokenizer unet scheduler safety_checker feature_extractor requires_safety_checker
    """),
}
"""For each config file the keys that are taken, beside those that begin with an underscore."""

ALWAYS_SO = {
    **{name: values[0] for name, values in FIXED.items()},
    "transformer_layers_per_block": 1,
    "scaling_factor": 0.18215,
    "timestep_spacing": "leading",
    "force_upcast": True,
    "mid_block_add_attention": True,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
}
"""What diffusers 0.11.1 does, by the keys of later versions. Other values of these make other clips."""
NO_EFFECT = {
    *("dynamic_thresholding_ratio", "sample_max_value", "clip_sample_range", "attention_type"),
    "addition_embed_type_num_heads",
}
"""Keys that matter only beside others that would be named."""

PASSED_OVER = {"scaling_factor"}
"""Keys that are written although this version does not know them: it passes over them, later ones do not."""

UNET_MODULES = _keys("""
    conv_in time_embedding down_blocks mid_block up_blocks conv_norm_out conv_out
""")
SD14 = UNet3DConfig()
POSE_EVERY_LAYERS = 3


def for_published_code(plan: ExportPlan) -> ExportPlan:
    """The plan of a Stable Diffusion pipeline with the names and config keys of diffusers 0.11.1,
    which names the VAE's arrays as the Flax model does.

    A warning names config fields that this version does not have, and whose values are not what it does.
    """
    texts = {
        name: _config(name, text) if name in CONFIG_KEYS else text for name, text in plan.text_files.items()
    }
    weights = [
        model._replace(arrays={flax_vae_name(name): x for name, x in model.arrays.items()})
        if model.file.startswith("vae/")
        else model
        for model in plan.weights
    ]
    return plan._replace(weights=weights, text_files=texts)


def warn_of_sizes(name: str, config: UNet3DConfig) -> None:
    """Say where the published code makes other clips of a UNet of these sizes, or does not open it."""
    if config.layers_per_block + 1 < POSE_EVERY_LAYERS:
        log.warning(
            "%s: the published code adds the pose after every third layer of a block; this UNet has no third "
            "layer, so poses would not steer there",
            name,
        )
    fields = ("in_channels", "block_out_channels", "layers_per_block", "cross_attention_dim")
    if other := [field for field in fields if getattr(config, field) != getattr(SD14, field)]:
        log.warning(
            "%s: the published code opens no other sizes than Stable Diffusion 1.4's; this UNet differs in "
            "%s",
            name,
            ", ".join(other),
        )


def names_not_taken(folder: Path) -> Iterator[str]:
    """What diffusers 0.11.1 does not take of a pipeline folder: config keys, and names of arrays."""
    for file, keys in CONFIG_KEYS.items():
        try:
            config: dict[str, Any] = json.loads((folder / file).read_text())
        except (OSError, ValueError) as error:
            raise UserError(f"{folder / file}: cannot be read ({error})") from error
        for key in config.keys() - keys - PASSED_OVER:
            if not key.startswith("_"):
                yield f"{file}: {key}"
    for name in open_weights(find_weights(folder / "vae")):
        if flax_vae_name(name) != name:
            yield f"vae: {name}"
    for name in open_weights(find_weights(folder / "text_encoder")):
        if not name.startswith("text_model."):
            yield f"text_encoder: {name}"
    for name in open_weights(find_weights(folder / "unet")):
        if name.split(".")[0] not in UNET_MODULES:
            yield f"unet: {name}"


def _config(name: str, text: str) -> str:
    values: dict[str, Any] = json.loads(text)
    taken = {key: x for key, x in values.items() if key in CONFIG_KEYS[name] or key.startswith("_")}
    ignored = {key: x for key, x in values.items() if key not in taken and key not in NO_EFFECT}
    if differing := [
        f"{key}={x}" for key, x in ignored.items() if x not in (None, False, [None, None], ALWAYS_SO.get(key))
    ]:
        log.warning(
            "%s: the published code (diffusers %s) ignores %s", name, VERSION, list_names(sorted(differing))
        )
    taken |= {key: x for key, x in ignored.items() if key in PASSED_OVER}
    if "_diffusers_version" in taken or name == "unet/config.json":
        taken["_diffusers_version"] = VERSION
    return json.dumps(taken, indent=2)
