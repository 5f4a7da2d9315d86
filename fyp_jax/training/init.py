"""Where a run begins: the models of a stage, and the weights that it starts from."""

import dataclasses
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from fyp_jax import trees
from fyp_jax.checkpoints.checksums import check_finite
from fyp_jax.checkpoints.inference import inference_shapes, load_inference
from fyp_jax.convert.delta_weights import read_delta_weights
from fyp_jax.convert.open_pipeline import check_prediction_type, open_pipeline, options_of
from fyp_jax.convert.pipeline_folder import PARTS_WITH_WEIGHTS, PipelineFolder
from fyp_jax.convert.video_pipeline import read_video_pipeline, video_provenance
from fyp_jax.models.encoders import ENCODERS, LatentEncoders
from fyp_jax.models.execution import ExecutionConfig
from fyp_jax.models.layer_forms import LayerForms, choose_layer_forms
from fyp_jax.models.pose_encoder import PoseEncoder, init_pose_encoder
from fyp_jax.models.random_params import random_params
from fyp_jax.models.unet import UNet3D, UNet3DConfig, init_temporal, init_unet
from fyp_jax.training.config import MODELS, TrainConfig
from fyp_jax.training.encoder_checksums import encoder_checksums
from fyp_jax.training.losses import Models
from fyp_jax.training.stages import Stage

LAST_TEMPORAL_KERNEL = re.compile(r"/conv_temporal/up/kernel$")
"""Path of a parameter that always starts at 0. Temporal layers are untrained while all of these are 0,
and so are the biases of temporal attention."""
ATTENTION_BIAS = re.compile(r"/attn_temp/to_out_0/bias$")


class InitialState(NamedTuple):
    """What a run has before its first step."""

    models: Models
    trainable: dict[str, Any]
    """Parameters by path, float32."""
    frozen: dict[str, Any]
    """Parameters by path, in `frozen_dtype`."""
    saved_models: tuple[str, ...]
    """The models that a checkpoint has to hold: those that differ from the ones of `pretrained`."""
    provenance: dict[str, Any]
    """Where the weights are from, for whoever reads a checkpoint of the run."""
    encoder_checksums: dict[str, str] | None = None
    """`encoder_checksums` of a run on cached latents; None for other runs."""


def initialize_weights(config: TrainConfig, stage: Stage, frame_axis: str | None) -> InitialState:
    """Models and weights of a config. Raises UserError where weights are missing or do not fit each other.

    Each model starts untrained where the config says so (`reinit`), else with the weights of
    `init_checkpoint` if that has them, else with the pipeline's; the pipeline's image UNet is inflated to
    clips. Temporal layers that no run has trained are initialised as the stage needs them: silent for images,
    so that stages before the motion stage train an image model; as `zero_init_temporal` says for videos.
    """
    options = options_of(config)
    provenance: dict[str, Any] = {
        "stage": stage.name,
        "pretrained": config.pretrained,
        "init_checkpoint": config.init_checkpoint,
        **{name: value for name, value in options._asdict().items() if value is not None},
    }
    if config.data.video is not None:
        clip = ("video", "caption", "num_frames", "stride", "start")
        provenance["clip"] = {name: getattr(config.data, name) for name in clip}
    dtype = jnp.dtype(config.dtype)
    if config.random_init:
        folder = open_pipeline(config.pretrained, (), options)
        unet_config, encoders = folder.unet_config(), folder.latent_encoders(dtype)
        params = random_params(inference_shapes(unet_config) | encoders.spec.shapes, config.seed)
        saved_models, provenance = MODELS[:2], provenance | {"random": True}
    else:
        saved_config, saved, earlier = _starting_weights(config)
        kept = {name: tree for name, tree in saved.items() if name not in config.reinit}
        missing = tuple(part for part in MODELS if part not in config.reinit and part not in kept)
        parts = tuple(part for part in missing if part in PARTS_WITH_WEIGHTS)
        folder = open_pipeline(config.pretrained, parts, options)
        encoders = folder.latent_encoders(dtype)
        unet_config = saved_config or folder.unet_config()
        if "unet" in kept:
            predicts = folder.schedule().prediction_type
            check_prediction_type(earlier, predicts, config.init_checkpoint or config.pretrained)
        if "unet" not in kept or _temporal_untrained(kept["unet"]):
            zero_init = config.zero_init_temporal or stage.dataset == "pose_images"
            unet_config = dataclasses.replace(unet_config, zero_init_temporal=zero_init)
        read = folder.encoder_params(encoders, tuple(part for part in missing if part in ENCODERS))
        params = read | _unet_and_pose_encoder(config, unet_config, folder, kept)
        params |= {name: kept[name] for name in ENCODERS if name in kept}
        for name in ENCODERS:
            if name in config.reinit:
                params[name] = encoders.init(name, jax.random.key(config.seed))
        trees.check_same(
            flatten_dict({name: params[name] for name in ENCODERS}, sep="/"),
            flatten_dict(encoders.spec.shapes, sep="/"),
            f"{config.init_checkpoint or config.pretrained}, VAE and text encoder",
        )
        saved_models = tuple(name for name in MODELS if name not in read)
        provenance |= {"reinit": list(config.reinit)}
        if "unet" in kept and "num_frames" in earlier:
            provenance["num_frames"] = earlier["num_frames"]
    if stage.dataset != "pose_images":  # the temporal layers see clips of so many frames
        provenance["num_frames"] = config.data.num_frames
    provenance["prediction_type"] = folder.schedule().prediction_type
    flat: dict[str, Any] = flatten_dict(params, sep="/")
    trained = stage.trains(flat)
    check_finite(flat, config.init_checkpoint or config.pretrained)
    frozen_dtype = jnp.dtype(config.frozen_dtype)
    trained_models = {path.split("/")[0] for path in flat if trained[path]}
    device = jax.devices()[0]
    forms = choose_layer_forms(config.attention_implementation, dtype, device.platform, device.device_kind)
    return InitialState(
        _models(config, stage, folder, encoders, unet_config, frame_axis, forms),
        {path: np.asarray(x, np.float32) for path, x in flat.items() if trained[path]},
        {path: np.asarray(x, frozen_dtype) for path, x in flat.items() if not trained[path]},
        tuple(name for name in MODELS if name in saved_models or name in trained_models),
        provenance,
        encoder_checksums(encoders, params) if config.data.cached_latents else None,
    )


def frozen_in_steps(
    config: TrainConfig, frozen: dict[str, Any], saved_models: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Frozen parameters that a run holds on its devices.

    On cached latents these are not the encoders, unless validation samples or a checkpoint needs them.
    """
    if not config.data.cached_latents or config.validation.sample_interval:
        return frozen
    unused = [name for name in ENCODERS if name not in saved_models]
    return {path: x for path, x in frozen.items() if path.split("/")[0] not in unused}


def initial_shapes(
    config: TrainConfig,
    stage: Stage,
    frame_axis: str | None,
    forms: LayerForms,
) -> tuple[Models, dict[str, Any], dict[str, Any]]:
    """The models of a config, and shapes and dtypes of its trainable and of its frozen parameters, by path.

    No weights are read, and the UNet has the sizes of `pretrained`. Raises UserError where that is not found.
    """
    folder = open_pipeline(config.pretrained, (), options_of(config))
    encoders, unet_config = folder.latent_encoders(jnp.dtype(config.dtype)), folder.unet_config()
    flat: dict[str, Any] = flatten_dict(inference_shapes(unet_config) | encoders.spec.shapes, sep="/")
    trained = stage.trains(flat)
    dtypes = {True: jnp.dtype(jnp.float32), False: jnp.dtype(config.frozen_dtype)}

    def shapes(of_trained: bool) -> dict[str, Any]:
        paths = [path for path in flat if trained[path] is of_trained]
        return {path: jax.ShapeDtypeStruct(flat[path].shape, dtypes[of_trained]) for path in paths}

    models = _models(config, stage, folder, encoders, unet_config, frame_axis, forms)
    return models, shapes(True), frozen_in_steps(config, shapes(False))


def _models(
    config: TrainConfig,
    stage: Stage,
    folder: PipelineFolder,
    encoders: LatentEncoders,
    unet_config: UNet3DConfig,
    frame_axis: str | None,
    forms: LayerForms,
) -> Models:
    execution = ExecutionConfig(jnp.dtype(config.dtype), config.remat, frame_axis, forms)
    pose_encoder = PoseEncoder(unet_config, execution.dtype) if stage.uses_pose else None
    unet = UNet3D(unet_config, execution)
    return Models(
        encoders,
        folder.schedule(),
        unet,
        pose_encoder,
        config.noise_correlation,
        config.loss,
        config.data.cached_latents,
    )


def _unet_and_pose_encoder(
    config: TrainConfig, unet_config: UNet3DConfig, folder: PipelineFolder, kept: dict[str, Any]
) -> dict[str, Any]:
    key = jax.random.key(config.seed)
    if "unet" in config.reinit:
        unet = jax.jit(init_unet, static_argnums=0)(unet_config, key)
    elif "unet" not in kept:
        unet = folder.inflate_unet(unet_config, config.seed)
    elif _temporal_untrained(kept["unet"]):
        flat = flatten_dict(kept["unet"], sep="/") | init_temporal(unet_config, key)
        unet = unflatten_dict(flat, sep="/")
    else:
        unet = kept["unet"]
    return {"unet": unet, "pose_encoder": kept.get("pose_encoder") or init_pose_encoder(unet_config, key)}


def _starting_weights(config: TrainConfig) -> tuple[UNet3DConfig | None, dict[str, Any], dict[str, Any]]:
    """The UNet's config, the parameters and the provenance of `init_checkpoint`, or else of a pipeline that
    was trained on videos, as the bundled model was; (None, {}, {}) for an image model."""
    if config.init_checkpoint is not None:
        return load_inference(config.init_checkpoint, verify=config.checkpoint.verify)
    options = options_of(config)
    folder = open_pipeline(config.pretrained, (), options)
    if folder.has_video_unet:
        video = read_video_pipeline(open_pipeline(config.pretrained, PARTS_WITH_WEIGHTS, options))
        return (None, {}, {}) if video is None else (*video, video_provenance(folder))
    return read_delta_weights(folder) or (None, {}, {})


def _temporal_untrained(unet: dict[str, Any]) -> bool:
    """Whether no run has trained the temporal layers of this UNet."""
    flat: dict[str, Any] = flatten_dict(unet, sep="/")
    zero_at_first = (LAST_TEMPORAL_KERNEL, ATTENTION_BIAS)
    return not any(
        np.any(x) for path, x in flat.items() if any(pattern.search(path) for pattern in zero_at_first)
    )
