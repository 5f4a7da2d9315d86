"""The full model and its ablations: functions that sample a clip for a case of the evaluation set."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import UInt8

from fyp_jax.models.unet import UNet3D
from fyp_jax.pipeline.params import SamplingParams
from fyp_jax.pipeline.pipeline import FollowYourPosePipeline


@runtime_checkable
class Case(Protocol):
    """What a clip is sampled for: a case of the evaluation set."""

    @property
    def caption(self) -> str: ...
    @property
    def pose_images(self) -> UInt8[np.ndarray, "f h w 3"]: ...


SampleFn = Callable[[Any, int], UInt8[np.ndarray, "f h w 3"]]
"""A function from a case and the seed of the noise to the frames of a clip."""

FULL_MODEL = "full model"
FRAME_BY_FRAME = "pose stage only, frame by frame"
OWN_NOISE, CORRELATED_NOISE = "own noise for each frame", "correlated noise"
WITHOUT_CROSS_FRAME, WITHOUT_TEMPORAL = "without cross-frame attention", "without temporal layers"


def full_and_ablations(
    pipeline: FollowYourPosePipeline, image_unet: Mapping[str, Any], sampling: SamplingParams, ablations: bool
) -> dict[str, SampleFn]:
    """What makes clips for each row: the full model and the pose stage alone, and without its parts, one at a
    time, where `ablations` asks for them. `image_unet` are the nested parameters of the image model."""
    pose_stage = with_params(pipeline, before_motion_stage(pipeline.params, image_unet))
    changed = functools.partial(dataclasses.replace, sampling)
    own = changed(noise_correlation=0.0)
    found = {
        FULL_MODEL: full_model(pipeline, sampling),
        FRAME_BY_FRAME: frame_by_frame(pose_stage, sampling),
    }
    if not ablations:
        return found
    alone = without_cross_frame_attention(pipeline)
    silent = with_params(
        pipeline, {**pipeline.params, "unet": without_temporal_layers(pipeline.params["unet"])}
    )
    correlated = changed(noise_correlation=1.0)
    found[f"pose stage only, {CORRELATED_NOISE}"] = full_model(pose_stage, correlated)
    if sampling != own:
        found[OWN_NOISE] = full_model(pipeline, own)
    if sampling != correlated:
        found[CORRELATED_NOISE] = full_model(pipeline, correlated)
    name = "guidance on the text alone" if sampling.pose_guidance else "guidance on the pose too"
    found[name] = full_model(pipeline, changed(pose_guidance=not sampling.pose_guidance))
    return found | {
        "without pose": without_pose(pipeline, sampling),
        WITHOUT_CROSS_FRAME: full_model(alone, sampling),
        WITHOUT_TEMPORAL: full_model(silent, sampling),
    }


def full_model(pipeline: FollowYourPosePipeline, sampling: SamplingParams) -> SampleFn:
    """Sample with pose, text, cross-frame attention and temporal layers."""

    def sample(case: Case, seed: int) -> Any:
        params = _with_size(sampling, case, seed=seed)
        return pipeline(case.caption, case.pose_images, params).frames

    return sample


def without_pose(pipeline: FollowYourPosePipeline, sampling: SamplingParams) -> SampleFn:
    """Sample from text alone."""

    def sample(case: Case, seed: int) -> Any:
        return pipeline(case.caption, None, _with_size(sampling, case, seed=seed)).frames

    return sample


def frame_by_frame(pipeline: FollowYourPosePipeline, sampling: SamplingParams) -> SampleFn:
    """Sample each frame as a clip of its own, with its own noise: all that the pose stage alone can do."""

    def sample(case: Case, seed: int) -> Any:
        frames = []
        for i, pose_image in enumerate(case.pose_images):
            params = _with_size(sampling, case, seed=seed * 1000 + i, num_frames=1)
            frames.append(pipeline(case.caption, pose_image[None], params).frames)
        return np.concatenate(frames)

    return sample


def without_temporal_layers(unet: Mapping[str, Any]) -> dict[str, Any]:
    """The UNet's parameters with temporal attention and temporal convolution set to add nothing."""
    zeroed = ("attn_temp/to_out_0", "conv_temporal/up")
    flat: dict[str, Any] = flatten_dict(unet, sep="/")
    return unflatten_dict(
        {path: jnp.zeros_like(x) if any(part in path for part in zeroed) else x for path, x in flat.items()},
        sep="/",
    )


def before_motion_stage(params: Mapping[str, Any], image_unet: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of the pose stage: queries of the image model, and temporal layers that add nothing."""
    unet = flatten_dict(without_temporal_layers(params["unet"]), sep="/") | flatten_dict(image_unet, sep="/")
    return {**params, "unet": unflatten_dict(unet, sep="/")}


def with_params(pipeline: FollowYourPosePipeline, params: Mapping[str, Any]) -> FollowYourPosePipeline:
    """The same pipeline with other parameters."""
    return dataclasses.replace(pipeline, params=dict(params))


def without_cross_frame_attention(pipeline: FollowYourPosePipeline) -> FollowYourPosePipeline:
    """The same pipeline, but each frame attends only to itself, as in the image model."""
    programs = pipeline.programs
    config = dataclasses.replace(programs.unet.config, cross_frame_attention=False)
    unet = UNet3D(config, programs.unet.execution)
    return dataclasses.replace(pipeline, programs=dataclasses.replace(programs, unet=unet))


def _with_size(sampling: SamplingParams, case: Case, **changes: Any) -> SamplingParams:
    frames, height, width = case.pose_images.shape[:3]
    return dataclasses.replace(sampling, **{"num_frames": frames, "height": height, "width": width} | changes)
