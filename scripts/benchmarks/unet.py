"""The denoising step that benchmarks measure, and PyTorch diffusers' image UNet of the same size."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fyp_jax.convert.pipeline_folder import PipelineFolder
from fyp_jax.models.execution import ExecutionConfig
from fyp_jax.models.layer_forms import choose_layer_forms
from fyp_jax.models.random_params import random_params
from fyp_jax.models.unet import UNet3D, unet_shapes

WORDS, TIMESTEP = 77, 501


class DenoisingStep(NamedTuple):
    """A function of parameters and latents, and random values for both."""

    function: Any
    params: Any
    latents: jax.Array


def denoising_step(folder: PipelineFolder, clips: int, frames: int, side: int) -> DenoisingStep:
    """One step of the UNet on `clips` clips of `frames` frames of `side` x `side` latents, in float32, with
    the layers that sampling takes on this machine."""
    config, device = folder.unet_config(), jax.devices()[0]
    forms = choose_layer_forms("auto", jnp.float32, device.platform, device.device_kind)
    unet = UNet3D(config, ExecutionConfig(forms=forms))
    params = jax.tree.map(jnp.asarray, random_params(unet_shapes(config), seed=0))
    latents = jax.random.normal(jax.random.key(0), (clips, frames, side, side, config.in_channels))
    text = jax.random.normal(jax.random.key(1), (clips, WORDS, config.cross_attention_dim))
    t = jnp.full(clips, TIMESTEP)

    def denoise(params: Any, latents: jax.Array) -> jax.Array:
        return unet.apply({"params": params}, latents, t, text)  # pyright: ignore[reportReturnType]

    return DenoisingStep(denoise, params, latents)


def torch_image_unet(folder: PipelineFolder) -> Any:
    """diffusers' UNet, untrained."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return UNet2DConditionModel(**{key: value for key, value in folder.json("unet").items() if key[0] != "_"})


def torch_inputs(folder: PipelineFolder, images: int, side: int, **options: Any) -> tuple[Any, int, Any]:
    """Latents, a timestep and the features of a text, for that UNet; `options` are a device and a dtype."""
    import torch

    config = folder.unet_config()
    latents = torch.randn(images, config.in_channels, side, side, **options)
    return latents, TIMESTEP, torch.randn(images, WORDS, config.cross_attention_dim, **options)
