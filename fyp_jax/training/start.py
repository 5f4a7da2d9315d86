"""Where a run begins: the models of a stage, and the weights that it starts from."""

import dataclasses
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fyp_jax import trees
from fyp_jax.checkpoint import inference_shapes, load_inference
from fyp_jax.convert.pipeline_folder import PipelineFolder
from fyp_jax.models.compute import Compute
from fyp_jax.models.pose_encoder import PoseEncoder, init_pose_encoder
from fyp_jax.models.random_params import random_params
from fyp_jax.models.unet import UNet3D, UNet3DConfig, draw_temporal
from fyp_jax.training.config import TrainConfig
from fyp_jax.training.stages import Stage
from fyp_jax.training.step import Networks

UNTRAINED = re.compile(r"/conv_temporal/up/kernel$")
"""Starts at 0 whatever the config: while all of them are 0, temporal layers have not been trained."""


class Start(NamedTuple):
    """What a run has before its first step."""

    networks: Networks
    trainable: dict[str, Any]
    """By path, float32."""
    frozen: dict[str, Any]
    """By path, in `frozen_dtype`."""
    origin: dict[str, Any]
    """Where the weights are from, for whoever reads a checkpoint of the run."""


def start(config: TrainConfig, stage: Stage, frame_axis: str | None) -> Start:
    """Models and weights of a config. Raises UserError where they cannot be had, or do not fit each other.

    The UNet is the pipeline's image UNet, inflated to clips, or that of the checkpoint `init`. Temporal
    layers that no training has touched are drawn anew as the stage wants them: silent for images, so that
    the pose stage trains against the text-to-image model; by `zero_init_temporal` for videos.
    """
    from_pipeline = config.init is None and not config.random_weights
    encoders = ("vae", "text_encoder")
    parts = () if config.random_weights else (*encoders, "unet") if from_pipeline else encoders
    folder = PipelineFolder(config.pretrained, parts=parts)
    frozen_models = folder.frozen_models(jnp.dtype(config.dtype))
    zero_init = config.zero_init_temporal or stage.uses_pose
    origin: dict[str, Any] = {"stage": stage.name, "pretrained": config.pretrained, "init": config.init}
    if config.random_weights:
        unet_config = folder.unet_config()
        params = random_params(inference_shapes(unet_config) | frozen_models.shapes(), config.seed)
        origin |= {"random": True}
    else:
        unet_config, params = _trained(config, folder, zero_init)
        params = params | folder.frozen_params(frozen_models)
    flat = trees.flatten(params)
    trained = stage.trains(flat)
    compute = Compute(jnp.dtype(config.dtype), config.remat, frame_axis)
    networks = Networks(
        frozen_models,
        folder.schedule(),
        UNet3D(unet_config, compute),
        PoseEncoder(unet_config, compute.dtype) if stage.uses_pose else None,
    )
    frozen_dtype = jnp.dtype(config.frozen_dtype)
    return Start(
        networks,
        {path: np.asarray(x, np.float32) for path, x in flat.items() if trained[path]},
        {path: np.asarray(x, frozen_dtype) for path, x in flat.items() if not trained[path]},
        origin,
    )


def _trained(
    config: TrainConfig, folder: PipelineFolder, zero_init: bool
) -> tuple[UNet3DConfig, dict[str, Any]]:
    """UNet and pose encoder, from a checkpoint or from Stable Diffusion."""
    key = jax.random.key(config.seed)
    if config.init is None:
        unet_config = dataclasses.replace(folder.unet_config(), zero_init_temporal=zero_init)
        unet = folder.unet_2d(unet_config, config.seed)
        return unet_config, {"unet": unet, "pose_encoder": init_pose_encoder(unet_config, key)}
    unet_config, params, _ = load_inference(config.init)
    unet = trees.flatten(params["unet"])
    if not any(np.any(x) for path, x in unet.items() if UNTRAINED.search(path)):
        unet_config = dataclasses.replace(unet_config, zero_init_temporal=zero_init)
        unet |= draw_temporal(unet_config, key)
    return unet_config, params | {"unet": trees.unflatten(unet)}
