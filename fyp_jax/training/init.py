"""Where a run begins: the models of a stage, and the weights that it starts from."""

import dataclasses
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from fyp_jax import trees
from fyp_jax.checkpoints.inference import inference_shapes, load_inference
from fyp_jax.convert.pipeline_folder import WEIGHTED, PipelineFolder
from fyp_jax.models.encoders import ENCODERS, LatentEncoders
from fyp_jax.models.execution import ExecutionConfig
from fyp_jax.models.pose_encoder import PoseEncoder, init_pose_encoder
from fyp_jax.models.random_params import random_params
from fyp_jax.models.unet import UNet3D, UNet3DConfig, init_temporal, init_unet
from fyp_jax.training.config import MODELS, TrainConfig
from fyp_jax.training.losses import Models
from fyp_jax.training.stages import Stage

UNTRAINED = re.compile(r"/conv_temporal/up/kernel$")
"""Starts at 0 whatever the config: while all of them are 0, temporal layers have not been trained."""


class Start(NamedTuple):
    """What a run has before its first step."""

    networks: Models
    trainable: dict[str, Any]
    """By path, float32."""
    frozen: dict[str, Any]
    """By path, in `frozen_dtype`."""
    models: tuple[str, ...]
    """Those that a checkpoint has to hold: all that are not just as `pretrained` has them."""
    provenance: dict[str, Any]
    """Where the weights are from, for whoever reads a checkpoint of the run."""


def start(config: TrainConfig, stage: Stage, frame_axis: str | None) -> Start:
    """Models and weights of a config. Raises UserError where they cannot be had, or do not fit each other.

    Each model is fresh where the config says so, else that of the checkpoint `init` if it has one, else the
    pipeline's, its image UNet inflated to clips. Temporal layers that no training has touched are drawn anew
    as the stage wants them: silent for images, so that stages before the motion stage train an image model;
    by `zero_init_temporal` for videos.
    """
    provenance: dict[str, Any] = {"stage": stage.name, "pretrained": config.pretrained, "init": config.init}
    dtype = jnp.dtype(config.dtype)
    if config.random_init:
        folder = PipelineFolder(config.pretrained, parts=())
        unet_config, latent_encoders = folder.unet_config(), folder.latent_encoders(dtype)
        params = random_params(inference_shapes(unet_config) | latent_encoders.spec.shapes, config.seed)
        models, provenance = MODELS[:2], provenance | {"random": True}
    else:
        saved_config, saved = (None, {}) if config.init is None else load_inference(config.init)[:2]
        kept = {name: tree for name, tree in saved.items() if name not in config.fresh}
        wanted = tuple(part for part in MODELS if part not in config.fresh and part not in kept)
        folder = PipelineFolder(config.pretrained, tuple(part for part in wanted if part in WEIGHTED))
        latent_encoders = folder.latent_encoders(dtype)
        zero_init = config.zero_init_temporal or stage.dataset == "pose_images"
        unet_config = saved_config or folder.unet_config()
        if "unet" not in kept or _never_in_time(kept["unet"]):
            unet_config = dataclasses.replace(unet_config, zero_init_temporal=zero_init)
        read = folder.encoder_params(latent_encoders, tuple(part for part in wanted if part in ENCODERS))
        params = read | _unet_and_pose(config, unet_config, folder, kept)
        params |= {name: kept[name] for name in ENCODERS if name in kept}
        for name in ENCODERS:
            if name in config.fresh:
                params[name] = latent_encoders.init(name, jax.random.key(config.seed))
        trees.check_same(
            flatten_dict({name: params[name] for name in ENCODERS}, sep="/"),
            flatten_dict(latent_encoders.spec.shapes, sep="/"),
            f"{config.init or config.pretrained}, VAE and text encoder",
        )
        models = tuple(name for name in MODELS if name not in read)
        provenance |= {"fresh": list(config.fresh)}
    flat = flatten_dict(params, sep="/")
    trained = stage.trains(flat)
    frozen_dtype = jnp.dtype(config.frozen_dtype)
    learning = {path.split("/")[0] for path in flat if trained[path]}
    return Start(
        _networks(config, stage, folder, latent_encoders, unet_config, frame_axis),
        {path: np.asarray(x, np.float32) for path, x in flat.items() if trained[path]},
        {path: np.asarray(x, frozen_dtype) for path, x in flat.items() if not trained[path]},
        tuple(name for name in MODELS if name in models or name in learning),
        provenance,
    )


def start_shapes(
    config: TrainConfig, stage: Stage, frame_axis: str | None
) -> tuple[Models, dict[str, Any], dict[str, Any]]:
    """The networks of a config, and shapes and dtypes of what it trains and of the rest, by path.

    No weights are read, and the UNet has the sizes of `pretrained`. Raises UserError where that is not there.
    """
    folder = PipelineFolder(config.pretrained, parts=())
    latent_encoders, unet_config = folder.latent_encoders(jnp.dtype(config.dtype)), folder.unet_config()
    flat = flatten_dict(inference_shapes(unet_config) | latent_encoders.spec.shapes, sep="/")
    trained = stage.trains(flat)
    dtypes = {True: jnp.dtype(jnp.float32), False: jnp.dtype(config.frozen_dtype)}

    def of(role: bool) -> dict[str, Any]:
        paths = [path for path in flat if trained[path] is role]
        return {path: jax.ShapeDtypeStruct(flat[path].shape, dtypes[role]) for path in paths}

    return _networks(config, stage, folder, latent_encoders, unet_config, frame_axis), of(True), of(False)


def _networks(
    config: TrainConfig,
    stage: Stage,
    folder: PipelineFolder,
    latent_encoders: LatentEncoders,
    unet_config: UNet3DConfig,
    frame_axis: str | None,
) -> Models:
    execution = ExecutionConfig(jnp.dtype(config.dtype), config.remat, frame_axis)
    pose_encoder = PoseEncoder(unet_config, execution.dtype) if stage.uses_pose else None
    unet = UNet3D(unet_config, execution)
    return Models(latent_encoders, folder.schedule(), unet, pose_encoder, config.noise_correlation)


def _unet_and_pose(
    config: TrainConfig, unet_config: UNet3DConfig, folder: PipelineFolder, kept: dict[str, Any]
) -> dict[str, Any]:
    key = jax.random.key(config.seed)
    if "unet" in config.fresh:
        unet = jax.jit(init_unet, static_argnums=0)(unet_config, key)
    elif "unet" not in kept:
        unet = folder.inflate_unet(unet_config, config.seed)
    elif _never_in_time(kept["unet"]):
        unet = unflatten_dict(flatten_dict(kept["unet"], sep="/") | init_temporal(unet_config, key), sep="/")
    else:
        unet = kept["unet"]
    return {"unet": unet, "pose_encoder": kept.get("pose_encoder") or init_pose_encoder(unet_config, key)}


def _never_in_time(unet: dict[str, Any]) -> bool:
    """Whether no stage has trained the temporal layers of this UNet."""
    return not any(np.any(x) for path, x in flatten_dict(unet, sep="/").items() if UNTRAINED.search(path))
