"""The forms in which weights leave: what each one's folder has, and which weights it is for."""

import logging
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict

from fyp_jax import trees
from fyp_jax.convert.lazy import Weights
from fyp_jax.convert.native_safetensors import native_plan
from fyp_jax.convert.pipeline_folder import PARTS_WITH_WEIGHTS, PipelineFolder, pipeline_state_dicts
from fyp_jax.convert.t2i_adapter import t2i_plan
from fyp_jax.convert.torch_key_mapping import to_torch, params_to_torch
from fyp_jax.convert.weight_writer import ExportPlan, StateDictFile
from fyp_jax.errors import UserError
from fyp_jax.models.encoders import ENCODERS
from fyp_jax.models.unet import TEMPORAL
from fyp_jax.versions import versions

log = logging.getLogger(__name__)

STABLE_DIFFUSION = "stable-diffusion"


def checkpoint_name(weights: Weights) -> str:
    """The published sampling reads the step off this name."""
    return f"checkpoint-{weights.provenance.get('step', 0)}"


def pipeline_plan(weights: Weights, pipeline: PipelineFolder, ending: str = ".safetensors") -> ExportPlan:
    """The pipeline with the image part of our UNet, and with those encoders that a stage has trained."""
    classed = {"_class_name": "UNet2DConditionModel", "_diffusers_version": metadata.version("diffusers")}
    replaced = pipeline_state_dicts({name: tree for name, tree in weights.models.items() if name in PARTS_WITH_WEIGHTS})
    own = [name for name in ENCODERS if name in weights.models]
    shapes = pipeline.latent_encoders().spec.shapes if own else {}
    for name in own:
        what = f"the trained {name.replace('_', ' ')} against that of {pipeline.name}"
        trees.check_same(
            flatten_dict(weights.models[name], sep="/"), flatten_dict(shapes[name], sep="/"), what
        )
    for part, field, ours in (
        ("text_encoder", "hidden_size", weights.config.cross_attention_dim),
        ("vae", "latent_channels", weights.config.in_channels),
    ):
        if (theirs := pipeline.json(part).get(field, ours)) != ours:
            raise UserError(
                f"{pipeline.name}: its {part} has {field} {theirs}, but the checkpoint's UNet wants {ours}"
            )
    return pipeline.export_plan(replaced, {"unet": weights.config.to_json() | classed}, ending)


def _published(weights: Weights, pipeline: PipelineFolder, ending: str) -> ExportPlan:
    """As the published sampling has it: the video UNet, the pose encoder once more, Stable Diffusion."""
    unet = "model.safetensors" if ending == ".safetensors" else "pytorch_model.bin"
    pose = "pose_encoder.safetensors" if ending == ".safetensors" else "pose_encoder.pth"
    both = {part: weights.models[part] for part in ("unet", "pose_encoder")}
    stable_diffusion = pipeline_plan(weights, pipeline, ending).below(STABLE_DIFFUSION)
    return stable_diffusion._replace(
        weights=[
            StateDictFile(f"{checkpoint_name(weights)}/{unet}", to_torch(both)),
            StateDictFile(pose, params_to_torch(both["pose_encoder"])),
            *stable_diffusion.weights,
        ]
    )


class ExportFormat(NamedTuple):
    what: str
    contents: Callable[[Weights, Any], ExportPlan]
    """From weights, and the pipeline where it is asked for."""
    wants_pipeline: bool = False
    wants_pose: bool = False
    """A pose encoder that was trained."""
    wants_temporal: bool = False
    """Temporal layers that were trained; others are exported with a warning."""
    drops_temporal: bool = False


EXPORT_FORMATS = {
    "followyourpose": ExportFormat(
        "checkpoint-N/pytorch_model.bin, pose_encoder.pth and a stable-diffusion folder, for the published "
        "sampling",
        lambda weights, pipeline: _published(weights, pipeline, ".bin"),
        wants_pipeline=True,
        wants_pose=True,
        wants_temporal=True,
    ),
    "followyourpose-safetensors": ExportFormat(
        "the same as safetensors",
        lambda weights, pipeline: _published(weights, pipeline, ".safetensors"),
        wants_pipeline=True,
        wants_pose=True,
        wants_temporal=True,
    ),
    "diffusers-t2i-adapter": ExportFormat(
        "the pose encoder as a T2IAdapter",
        lambda weights, pipeline: t2i_plan(weights),
        wants_pose=True,
    ),
    "diffusers-unet2d": ExportFormat(
        "the image part of the UNet as a UNet2DConditionModel in a StableDiffusionPipeline",
        pipeline_plan,
        wants_pipeline=True,
        drops_temporal=True,
    ),
    "safetensors": ExportFormat(
        "our own names: unet.safetensors, pose_encoder.safetensors",
        lambda weights, pipeline: native_plan(weights),
    ),
}


def plan(weights: Weights, names: Sequence[str], pipeline: PipelineFolder | None) -> dict[str, ExportPlan]:
    """What the folder of each form will have; nothing is written yet.

    Raises UserError where weights do not fit a form or the pipeline lacks something, TreeMismatch where
    arrays are missing or left over.
    """
    require_fit(weights, names)
    return {name: EXPORT_FORMATS[name].export_plan(weights, pipeline) for name in names}


def manifest(weights: Weights, name: str, pipeline: PipelineFolder | None) -> dict[str, Any]:
    """What `conversion.json` says beside the files: where their weights are from, and what made them."""
    return {
        "form": name,
        "step": weights.provenance.get("step"),
        "config": weights.config.to_json(),
        "provenance": weights.provenance,
        "pipeline": None if pipeline is None else pipeline.name,
        "versions": versions(),
    }


def require_fit(weights: Weights, names: Sequence[str]) -> None:
    """Raise UserError where weights are of a stage that a form is not for; warn where some are of no use."""
    pose, temporal = _pose_is_trained(weights), _temporal_is_trained(weights)
    for name in names:
        form = EXPORT_FORMATS[name]
        if form.wants_pose and not pose:
            fitting = ", ".join(other for other, of in EXPORT_FORMATS.items() if not of.wants_pose)
            raise UserError(
                f"{name}: the pose encoder was never trained (stage: {weights.provenance.get('stage')}), its "
                f"maps are 0; of such a checkpoint these forms fit: {fitting}"
            )
        if form.wants_temporal and not weights.config.cross_frame_attention:
            raise UserError(f"{name}: the UNet was trained without cross-frame attention, which the form has")
        if form.wants_temporal and not temporal:
            log.warning("%s: the temporal layers were never trained, frames will not hang together", name)
        if form.drops_temporal and temporal:
            log.warning("%s: temporal layers are left out, though the UNet was trained with them", name)


def _pose_is_trained(weights: Weights) -> bool:
    """Before its training, input convolution and biases are 0, and so are the maps."""
    flat: dict[str, Any] = flatten_dict(weights.models["pose_encoder"], sep="/")
    starts_at_0 = [x for path, x in flat.items() if path.startswith("conv_in/") or path.endswith("/bias")]
    return any(np.any(array.read()) for array in starts_at_0)


def _temporal_is_trained(weights: Weights) -> bool:
    """Before their training, the ends of all temporal convolutions are 0."""
    flat: dict[str, Any] = flatten_dict(weights.models["unet"], sep="/")
    ends = [x for path, x in flat.items() if TEMPORAL.search(path) and path.endswith("/up/kernel")]
    return any(np.any(array.read()) for array in ends)
