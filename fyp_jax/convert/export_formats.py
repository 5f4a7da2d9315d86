"""The export formats: the contents of each one's folder, and the weights that each one is meant for."""

import json
import logging
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict

from fyp_jax import trees
from fyp_jax.convert.delta_weights import exported_delta
from fyp_jax.convert.folders import SAMPLING_DEFAULTS
from fyp_jax.convert.lazy import Weights
from fyp_jax.convert.native_safetensors import native_plan
from fyp_jax.convert.pipeline_folder import (
    PARTS_WITH_WEIGHTS,
    VIDEO_UNET,
    PipelineFolder,
    pipeline_state_dicts,
)
from fyp_jax.convert.published_code import for_published_code, warn_of_sizes
from fyp_jax.convert.t2i_adapter import t2i_plan
from fyp_jax.convert.torch_key_mapping import params_to_torch, to_torch, tuneavideo_to_torch
from fyp_jax.convert.weight_writer import ExportPlan, StateDictFile
from fyp_jax.errors import UserError
from fyp_jax.models.encoders import ENCODERS
from fyp_jax.models.unet_config import with_video_blocks
from fyp_jax.versions import versions

log = logging.getLogger(__name__)

STABLE_DIFFUSION = "stable-diffusion"


def checkpoint_name(weights: Weights) -> str:
    """The folder name of a published checkpoint, from which the published sampling code reads the step."""
    return f"checkpoint-{weights.provenance.get('step', 0)}"


def pipeline_plan(weights: Weights, pipeline: PipelineFolder, suffix: str = ".safetensors") -> ExportPlan:
    """The pipeline with the UNet's spatial layers, and with those encoders that a stage has trained.

    Raises UserError where the pipeline does not fit the UNet, TreeMismatch where a trained encoder does not
    fit the pipeline.
    """
    trained = {name: tree for name, tree in weights.models.items() if name in PARTS_WITH_WEIGHTS}
    trained_encoders = [name for name in ENCODERS if name in trained]
    shapes = pipeline.latent_encoders().spec.shapes if trained_encoders else {}
    for name in trained_encoders:
        what = f"the trained {name.replace('_', ' ')} against that of {pipeline.name}"
        trees.check_same(flatten_dict(trained[name], sep="/"), flatten_dict(shapes[name], sep="/"), what)
    for part, field, expected in (
        ("text_encoder", "hidden_size", weights.config.cross_attention_dim),
        ("vae", "latent_channels", weights.config.in_channels),
    ):
        if (found := pipeline.json(part).get(field, expected)) != expected:
            raise UserError(
                f"{pipeline.name}: its {part} has {field} {found}, but the checkpoint's UNet needs {expected}"
            )
    class_fields = {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": metadata.version("diffusers"),
    }
    unet_changes = weights.config.to_json() | class_fields
    return pipeline.export_plan(pipeline_state_dicts(trained), {"unet": unet_changes}, suffix)


def _whole_plan(weights: Weights, pipeline: PipelineFolder) -> ExportPlan:
    """The pipeline with the UNet's spatial layers, and all other layers beside it; and the options of
    sampling that suit the model, where the pipeline has some."""
    plan = pipeline_plan(weights, pipeline)
    defaults = pipeline.path / SAMPLING_DEFAULTS
    texts = {SAMPLING_DEFAULTS: defaults.read_text()} if defaults.is_file() else {}
    return plan._replace(
        weights=[*plan.weights, exported_delta(weights)], text_files={**plan.text_files, **texts}
    )


def _followyourpose_plan(weights: Weights, pipeline: PipelineFolder, suffix: str) -> ExportPlan:
    """What the published sampling code reads: the video UNet, the pose encoder (twice), Stable Diffusion."""
    unet_file = "model.safetensors" if suffix == ".safetensors" else "pytorch_model.bin"
    pose_file = "pose_encoder.safetensors" if suffix == ".safetensors" else "pose_encoder.pth"
    both = {name: weights.models[name] for name in ("unet", "pose_encoder")}
    stable_diffusion = for_published_code(pipeline_plan(weights, pipeline, suffix))
    stable_diffusion = stable_diffusion.in_subfolder(STABLE_DIFFUSION)
    return stable_diffusion._replace(
        weights=[
            StateDictFile(f"{checkpoint_name(weights)}/{unet_file}", to_torch(both)),
            StateDictFile(pose_file, params_to_torch(both["pose_encoder"])),
            *stable_diffusion.weights,
        ]
    )


def _tuneavideo_plan(weights: Weights, pipeline: PipelineFolder) -> ExportPlan:
    """What Tune-A-Video's code reads: a Stable Diffusion with a video UNet, without temporal convolutions."""
    plan = for_published_code(pipeline_plan(weights, pipeline, ".bin"))
    unet = tuneavideo_to_torch(weights.models["unet"])
    config = with_video_blocks(json.loads(plan.text_files["unet/config.json"])) | {"_class_name": VIDEO_UNET}
    return plan._replace(
        weights=[x._replace(arrays=unet) if x.file.startswith("unet/") else x for x in plan.weights],
        text_files={**plan.text_files, "unet/config.json": json.dumps(config, indent=2)},
    )


class ExportFormat(NamedTuple):
    """A format that weights are exported in."""

    description: str
    """One line for --help."""
    export_plan: Callable[[Weights, Any], ExportPlan]
    """The contents of the folder, from the weights and a pipeline (None where the format needs none)."""
    needs_pipeline: bool = False
    needs_trained_pose_encoder: bool = False
    """Whether weights whose pose encoder was never trained are refused."""
    is_video_model: bool = False
    """Whether the published video model reads it. Then UNets without cross-frame attention are refused, and
    untrained temporal layers cause a warning."""
    drops_temporal: bool = False
    """Whether temporal layers are left out; a warning says so if they were trained."""
    keeps_pose_encoder: bool = True
    is_tuneavideo: bool = False
    """Whether the model has neither temporal convolutions nor a pose encoder. Then weights are refused whose
    temporal convolutions are not 0, or whose trained pose encoder no other chosen format keeps."""


EXPORT_FORMATS = {
    "pipeline": ExportFormat(
        "a StableDiffusionPipeline folder with temporal layers and pose encoder beside it: diffusers opens "
        "the image part, fyp_jax all of it",
        lambda weights, pipeline: _whole_plan(weights, pipeline),
        needs_pipeline=True,
    ),
    "followyourpose": ExportFormat(
        "checkpoint-N/pytorch_model.bin, pose_encoder.pth and a stable-diffusion folder, for the published "
        "sampling code",
        lambda weights, pipeline: _followyourpose_plan(weights, pipeline, ".bin"),
        needs_pipeline=True,
        needs_trained_pose_encoder=True,
        is_video_model=True,
    ),
    "followyourpose-safetensors": ExportFormat(
        "the same as safetensors",
        lambda weights, pipeline: _followyourpose_plan(weights, pipeline, ".safetensors"),
        needs_pipeline=True,
        needs_trained_pose_encoder=True,
        is_video_model=True,
    ),
    "diffusers-t2i-adapter": ExportFormat(
        "the pose encoder as a T2IAdapter of diffusers",
        lambda weights, pipeline: t2i_plan(weights),
        needs_trained_pose_encoder=True,
    ),
    "diffusers-unet2d": ExportFormat(
        "the UNet without temporal layers as a UNet2DConditionModel, in a StableDiffusionPipeline folder",
        pipeline_plan,
        needs_pipeline=True,
        drops_temporal=True,
        keeps_pose_encoder=False,
    ),
    "tuneavideo": ExportFormat(
        "a pipeline folder with the UNet of Tune-A-Video, for its published code; without pose encoder",
        _tuneavideo_plan,
        needs_pipeline=True,
        is_video_model=True,
        keeps_pose_encoder=False,
        is_tuneavideo=True,
    ),
    "safetensors": ExportFormat(
        "the native format, with fyp_jax's parameter names: unet.safetensors, pose_encoder.safetensors",
        lambda weights, pipeline: native_plan(weights),
    ),
}


KEEP_POSE_ENCODER = {name for name, x in EXPORT_FORMATS.items() if x.keeps_pose_encoder}


def export_plans(
    weights: Weights, names: Sequence[str], pipeline: PipelineFolder | None
) -> dict[str, ExportPlan]:
    """The contents of a folder for each named format; nothing is written yet.

    Raises UserError where the weights do not suit a format or the pipeline lacks a file, TreeMismatch where
    arrays are missing or unexpected.
    """
    check_formats(weights, names)
    return {name: EXPORT_FORMATS[name].export_plan(weights, pipeline) for name in names}


def export_manifest(weights: Weights, name: str, pipeline: PipelineFolder | None) -> dict[str, Any]:
    """The first fields of `conversion.json`: provenance of the weights, and versions of the software."""
    return {
        "format": name,
        "step": weights.provenance.get("step"),
        "config": weights.config.to_json(),
        "provenance": weights.provenance,
        "pipeline": None if pipeline is None else pipeline.name,
        "versions": versions(),
    }


def check_formats(weights: Weights, names: Sequence[str]) -> None:
    """Raise UserError where the weights do not suit a format; warn where some of them will be of no use."""
    pose_encoder_is_trained = _pose_encoder_is_trained(weights)
    convolutions_are_trained = _is_trained(weights, "/conv_temporal/up/kernel")
    temporal_is_trained = convolutions_are_trained or _is_trained(weights, "/attn_temp/to_out_0/bias")
    for name in names:
        export_format = EXPORT_FORMATS[name]
        if export_format.needs_trained_pose_encoder and not pose_encoder_is_trained:
            usable = (key for key, x in EXPORT_FORMATS.items() if not x.needs_trained_pose_encoder)
            raise UserError(
                f"{name}: the pose encoder was never trained (stage: {weights.provenance.get('stage')}), so "
                f"its feature maps are 0; use a format that does not need it: {', '.join(usable)}"
            )
        keeps_untrained = export_format.keeps_pose_encoder and not pose_encoder_is_trained
        if export_format.needs_pipeline and keeps_untrained:
            log.warning("%s: the pose encoder was never trained, so poses have no effect", name)
        if export_format.is_video_model and not weights.config.cross_frame_attention:
            raise UserError(
                f"{name}: the UNet was trained without cross-frame attention, but this format's model has it"
            )
        if export_format.is_tuneavideo and convolutions_are_trained:
            raise UserError(
                f"{name}: this model has no temporal convolutions, but those of the checkpoint are trained, "
                "so its clips would be others; use followyourpose or safetensors"
            )
        if export_format.is_tuneavideo and pose_encoder_is_trained and not KEEP_POSE_ENCODER & set(names):
            raise UserError(
                f"{name}: this model has no pose encoder, and the checkpoint's is trained; to keep it, add "
                f"one of {', '.join(sorted(KEEP_POSE_ENCODER))} to --format"
            )
        if export_format.is_video_model and not export_format.is_tuneavideo:
            warn_of_sizes(name, weights.config)
        if export_format.is_video_model and not temporal_is_trained:
            log.warning("%s: the temporal layers were never trained, so clips will flicker", name)
        if export_format.drops_temporal and temporal_is_trained:
            log.warning("%s: the trained temporal layers are left out", name)


def _pose_encoder_is_trained(weights: Weights) -> bool:
    """Whether the input convolution or a bias is not 0; before training all of them are."""
    flat: dict[str, Any] = flatten_dict(weights.models["pose_encoder"], sep="/")
    initially_zero = [x for path, x in flat.items() if path.startswith("conv_in/") or path.endswith("/bias")]
    return any(np.any(array.read()) for array in initially_zero)


def _is_trained(weights: Weights, initially_zero: str) -> bool:
    """Whether an array of the UNet whose path ends so is not 0; before training all of them are."""
    flat: dict[str, Any] = flatten_dict(weights.models["unet"], sep="/")
    return any(np.any(x.read()) for path, x in flat.items() if path.endswith(initially_zero))
