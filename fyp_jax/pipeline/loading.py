"""From a config to models and weights: of a bundled model, a pipeline folder, a Hub id, a single file, or a
checkpoint of ours."""

import dataclasses
import json
import logging
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict

from fyp_jax.checkpoints.checksums import check_finite
from fyp_jax.checkpoints.inference import inference_shapes, load_inference, open_inference
from fyp_jax.checkpoints.manager import CheckpointError, resolve_step
from fyp_jax.compilation_cache import load_or_compile
from fyp_jax.convert.delta_weights import read_delta_weights
from fyp_jax.convert.folders import SAMPLING_DEFAULTS
from fyp_jax.convert.open_pipeline import (
    base_pipeline,
    check_prediction_type,
    open_pipeline,
    options_of,
    recorded_options,
)
from fyp_jax.convert.pipeline_folder import PARTS_WITH_WEIGHTS, PipelineFolder
from fyp_jax.convert.video_pipeline import read_video_pipeline, video_provenance
from fyp_jax.errors import UserError
from fyp_jax.models.encoders import ENCODERS
from fyp_jax.models.layer_forms import choose_layer_forms
from fyp_jax.models.pose_encoder import init_pose_encoder
from fyp_jax.models.random_params import random_params
from fyp_jax.models.unet_config import UNet3DConfig
from fyp_jax.parallel.mesh import AXES, shard_params
from fyp_jax.pipeline.abstract_calls import abstract_calls, lower
from fyp_jax.pipeline.config import SampleConfig
from fyp_jax.pipeline.params import SamplingParams, trained_frames
from fyp_jax.pipeline.programs import (
    STATIC_PARAMS,
    SamplingPrograms,
    make_programs,
    sampling_fingerprint,
)
from fyp_jax.pipeline.sampling_mesh import devices_of, require_devices, sampling_mesh
from fyp_jax.pipeline.styles import open_styles
from fyp_jax.types import Params

log = logging.getLogger(__name__)


class Components(NamedTuple):
    """What a pipeline is made of."""

    programs: SamplingPrograms
    params: dict[str, Any]
    defaults: SamplingParams
    weights: dict[str, Any]
    """Where the weights are from, with a checksum: the record for whoever repeats the run."""


def load_components(config: SampleConfig, use_cache: bool = False) -> Components:
    """Models and weights of a config.

    With `use_cache` the programs are compiled now for clips of just this config, or come from the cache of an
    earlier start (fyp_jax.compilation_cache); otherwise each is compiled when it is first called. Raises
    UserError where weights are missing, cannot be read, or do not fit each other.
    """
    config.check_model()
    config = resolve_checkpoint(config)
    styles = open_styles(config)
    folder = open_pipeline(config.pretrained, () if config.random_init else ENCODERS, options_of(config))
    encoders = folder.latent_encoders()
    with_tokens = styles.encoders(encoders)
    dtype = jnp.dtype(config.dtype)
    load_dtype = jnp.dtype(jnp.float32) if config.lora else dtype  # LoRA is added before weights are rounded
    require_devices(config.mesh, jax.device_count())
    device = jax.devices()[0]
    forms = choose_layer_forms(config.attention_implementation, dtype, device.platform, device.device_kind)
    if config.random_init:
        unet_config, provenance = folder.unet_config(), {"random": True}
        params = random_params(inference_shapes(unet_config) | encoders.spec.shapes, seed=0)
        params |= {part: _cast(params[part], load_dtype) for part in ("unet", "pose_encoder")}
    else:
        if config.checkpoint is not None:
            found = load_inference(config.checkpoint, load_dtype, config.step, config.verify)
        elif (
            found := read_delta_weights(folder, load_dtype) or _video_weights(config, folder, load_dtype)
        ) is None:
            raise UserError(
                f"{config.pretrained}: has no trained pose encoder and temporal layers; give "
                "checkpoint=FOLDER (scripts/import_pytorch.py makes one), or random_init=true to try it out"
            )
        unet_config, trained, provenance = found
        params = trained | folder.encoder_params(encoders, tuple(x for x in ENCODERS if x not in trained))
    check_finite(flatten_dict(params, sep="/"), config.checkpoint or config.pretrained)
    schedule = folder.schedule()
    check_prediction_type(provenance, schedule.prediction_type, config.checkpoint or config.pretrained)
    frames = trained_frames(provenance)
    mesh = sampling_mesh(config, jax.devices(), frames)
    params, style_record = styles.merge(params, with_tokens)
    params |= {part: _cast(params[part], dtype) for part in ("unet", "pose_encoder") if load_dtype != dtype}
    programs = make_programs(config, with_tokens, schedule, unet_config, mesh, forms, frames)
    record = {
        "pretrained": config.pretrained,
        "folder": str(folder.path),
        "checkpoint": config.checkpoint,
        "options": options_of(config)._asdict(),
        "provenance": provenance,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "crc32": checksum(params),
        **style_record,
    }
    params = jax.tree.map(jnp.asarray, params) if mesh is None else shard_params(params, mesh, AXES)
    programs = _compiled(config, programs, params, use_cache)
    return Components(programs, params, _defaults(folder, unet_config, programs), record)


def resolve_checkpoint(config: SampleConfig) -> SampleConfig:
    """The same config, but where `pretrained` is a checkpoint of ours, with that checkpoint and its base
    pipeline.

    Raises UserError where the checkpoint does not say which pipeline it was made with, and for a `step`
    without a checkpoint.
    """
    if config.checkpoint is not None:
        return config
    if not _is_checkpoint(config.pretrained):
        if config.step is not None:
            raise UserError(
                f"step={config.step}: {config.pretrained} is no checkpoint of ours; give checkpoint=FOLDER"
            )
        return config
    provenance = open_inference(config.pretrained, config.step).provenance
    base = base_pipeline(provenance)
    if base is None:
        raise UserError(
            f"{config.pretrained}: this checkpoint does not say which pipeline it was made with; "
            "give that as pretrained=NAME, and the checkpoint as checkpoint=FOLDER"
        )
    given = {name: x for name, x in options_of(config)._asdict().items() if x is not None}
    options = recorded_options(provenance)._asdict() | given
    return dataclasses.replace(config, pretrained=base, checkpoint=config.pretrained, **options)


def checksum(params: Params) -> int:
    """CRC-32 of all arrays, in the order of their paths."""
    crc = 0
    for _, leaf in sorted(flatten_dict(params, sep="/").items()):
        crc = zlib.crc32(np.ascontiguousarray(leaf).view(np.uint8).data, crc)
    return crc


def _is_checkpoint(name: str) -> bool:
    if (epath.Path(name) / "model_index.json").exists():
        return False
    try:
        resolve_step(name)
    except CheckpointError:
        return False
    return True


def _video_weights(
    config: SampleConfig, folder: PipelineFolder, dtype: jnp.dtype
) -> tuple[UNet3DConfig, dict[str, Any], dict[str, Any]] | None:
    """UNet and pose encoder of a pipeline that was trained on videos, as `load_inference` gives them."""
    if not folder.has_video_unet:
        return None
    found = read_video_pipeline(open_pipeline(config.pretrained, PARTS_WITH_WEIGHTS, options_of(config)))
    if found is None:
        return None
    unet_config, params = found
    if "pose_encoder" not in params:
        log.warning("%s: has no pose encoder, so poses have no effect", config.pretrained)
        params["pose_encoder"] = init_pose_encoder(unet_config, jax.random.key(0))
    return unet_config, _cast(params, dtype), {"pipeline": config.pretrained, **video_provenance(folder)}


def _compiled(
    config: SampleConfig, programs: SamplingPrograms, params: dict[str, Any], use_cache: bool
) -> SamplingPrograms:
    """The same programs, with those that were compiled before, if there are any."""
    devices = devices_of(programs.mesh, jax.local_devices())
    fingerprint = sampling_fingerprint(config, programs, devices)
    if config.aot_path is None:
        fingerprint["parameters"] = str({part: sorted(_dtypes(params[part])) for part in params})

    def compile_programs() -> dict[str, jax.stages.Compiled]:
        calls = abstract_calls(programs, config, params, devices)
        return {name: lower(programs, name, call).compile() for name, call in calls.items()}

    compiled = load_or_compile(
        "sampling",
        fingerprint,
        devices,
        compile_programs if use_cache else None,
        aot_path=config.aot_path,
    )
    compiled_for = {name: getattr(config, name) for name in STATIC_PARAMS} if compiled else {}
    return dataclasses.replace(programs, compiled=compiled, compiled_for=compiled_for)


def _defaults(folder: PipelineFolder, config: UNet3DConfig, programs: SamplingPrograms) -> SamplingParams:
    side = config.sample_size * programs.encoders.spec.downscale
    file = folder.path / SAMPLING_DEFAULTS
    own: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return SamplingParams(**{"height": side, "width": side, **own})


def _dtypes(tree: Params) -> set[str]:
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}


def _cast(tree: Params, dtype: jnp.dtype) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)
