"""From a config to models and weights: of a bundled model, a pipeline folder, a Hub id, or a checkpoint of
ours."""

import dataclasses
import json
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax.traverse_util import flatten_dict

from fyp_jax.checkpoints.checksums import check_finite
from fyp_jax.checkpoints.inference import inference_shapes, load_inference, open_inference
from fyp_jax.checkpoints.manager import latest_step
from fyp_jax.compilation_cache import load_or_compile
from fyp_jax.convert.delta_weights import read_delta_weights
from fyp_jax.convert.pipeline_folder import PipelineFolder
from fyp_jax.errors import UserError
from fyp_jax.models.encoders import ENCODERS
from fyp_jax.models.random_params import random_params
from fyp_jax.models.unet_config import UNet3DConfig
from fyp_jax.parallel.mesh import AXES, shard_params
from fyp_jax.pipeline.config import SampleConfig
from fyp_jax.pipeline.params import SamplingParams
from fyp_jax.pipeline.programs import (
    STATIC_PARAMS,
    SamplingPrograms,
    devices_of,
    make_programs,
    sampling_fingerprint,
    sampling_mesh,
)
from fyp_jax.types import Params

SAMPLING_DEFAULTS = "sampling_params.json"
"""A file of a pipeline folder: the SamplingParams that suit its model, where they are not the published
ones."""


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
    folder = PipelineFolder(config.pretrained, parts=() if config.random_init else ENCODERS)
    encoders = folder.latent_encoders()
    dtype = jnp.dtype(config.dtype)
    mesh = sampling_mesh(config, jax.devices())
    if config.random_init:
        unet_config, provenance = folder.unet_config(), {"random": True}
        params = random_params(inference_shapes(unet_config) | encoders.spec.shapes, seed=0)
        params |= {part: _cast(params[part], dtype) for part in ("unet", "pose_encoder")}
    else:
        if config.checkpoint is not None:
            found = load_inference(config.checkpoint, dtype, config.verify)
        elif (found := read_delta_weights(folder, dtype)) is None:
            raise UserError(
                f"{config.pretrained}: has no trained pose encoder and temporal layers; give "
                "checkpoint=FOLDER (scripts/import_pytorch.py makes one), or random_init=true to try it out"
            )
        unet_config, trained, provenance = found
        params = trained | folder.encoder_params(encoders, tuple(x for x in ENCODERS if x not in trained))
    check_finite(flatten_dict(params, sep="/"), config.checkpoint or config.pretrained)
    programs = make_programs(config, encoders, folder.schedule(), unet_config, mesh)
    record = {
        "pretrained": config.pretrained,
        "folder": str(folder.path),
        "checkpoint": config.checkpoint,
        "provenance": provenance,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "crc32": checksum(params),
    }
    params = jax.tree.map(jnp.asarray, params) if mesh is None else shard_params(params, mesh, AXES)
    programs = _compiled(config, programs, params, use_cache)
    return Components(programs, params, _defaults(folder, unet_config, programs), record)


def resolve_checkpoint(config: SampleConfig) -> SampleConfig:
    """The same config, but where `pretrained` is a checkpoint of ours, with that checkpoint and its base
    pipeline.

    Raises UserError where the checkpoint does not say which pipeline it was made with.
    """
    if config.checkpoint is not None or not _is_checkpoint(config.pretrained):
        return config
    base = base_pipeline(open_inference(config.pretrained).provenance)
    if base is None:
        raise UserError(
            f"{config.pretrained}: this checkpoint does not say which pipeline it was made with; "
            "give that as pretrained=NAME, and the checkpoint as checkpoint=FOLDER"
        )
    return dataclasses.replace(config, pretrained=base, checkpoint=config.pretrained)


def base_pipeline(provenance: dict[str, Any]) -> str | None:
    """The pipeline that a checkpoint's VAE and text encoder come from, by the checkpoint's own words."""
    return provenance.get("pretrained") or provenance.get("pipeline")


def checksum(params: Params) -> int:
    """CRC-32 of all arrays, in the order of their paths."""
    crc = 0
    for _, leaf in sorted(flatten_dict(params, sep="/").items()):
        crc = zlib.crc32(np.ascontiguousarray(leaf).view(np.uint8).data, crc)
    return crc


def _is_checkpoint(name: str) -> bool:
    folder = epath.Path(name)
    return folder.is_dir() and not (folder / "model_index.json").exists() and latest_step(folder) is not None


def _compiled(
    config: SampleConfig, programs: SamplingPrograms, params: dict[str, Any], use_cache: bool
) -> SamplingPrograms:
    """The same programs, with those that were compiled before, if there are any."""
    devices = devices_of(programs.mesh, jax.local_devices())
    fingerprint = sampling_fingerprint(config, programs, devices)
    if config.aot_path is None:
        fingerprint["parameters"] = str({part: sorted(_dtypes(params[part])) for part in params})

    def compile_programs() -> dict[str, jax.stages.Compiled]:
        calls = programs.abstract_calls(config, params, devices)
        return {name: programs.lower(name, call).compile() for name, call in calls.items()}

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
