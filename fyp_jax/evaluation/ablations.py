"""Ways of answering the exam: the model as it is shipped, or with a part of the method taken away."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import UInt8

from fyp_jax.evaluation.eval_set import EvalCase
from fyp_jax.models.unet import UNet3D
from fyp_jax.pipeline.pipeline import FollowYourPosePipeline
from fyp_jax.synthetic.scenes import caption

Sample = Callable[[EvalCase, int], UInt8[np.ndarray, "f 64 64 3"]]
"""(question, seed of the noise) -> clip."""


class How(NamedTuple):
    """What sampling is told beside prompt and pose; fields of `Sampler.__call__`."""

    steps: int
    guidance: float
    pose_guidance: bool
    noise_correlation: float = 0.0


def as_shipped(sampler: FollowYourPosePipeline, params: Mapping[str, Any], how: How) -> Sample:
    """Pose, text, cross-frame attention, temporal layers: all of it."""

    def sample(question: EvalCase, seed: int) -> Any:
        prompt = caption(question.scene)
        return sampler(params, prompt, question.skeleton, seed=seed, **how._asdict())

    return sample


def without_pose(sampler: FollowYourPosePipeline, params: Mapping[str, Any], how: How) -> Sample:
    """The text alone."""

    def sample(question: EvalCase, seed: int) -> Any:
        size, prompt = question.skeleton.shape[:3], caption(question.scene)
        return sampler(params, prompt, None, size=size, seed=seed, **how._asdict())

    return sample


def frame_by_frame(sampler: FollowYourPosePipeline, params: Mapping[str, Any], how: How) -> Sample:
    """Each frame on its own: what the pose stage alone can do."""

    def sample(question: EvalCase, seed: int) -> Any:
        prompt, frames = caption(question.scene), len(question.skeleton)
        seeds = [seed * 1000 + frame for frame in range(frames)]
        clips = [
            sampler(params, prompt, frame[None], seed=own, **how._asdict())
            for frame, own in zip(question.skeleton, seeds, strict=True)
        ]
        return np.concatenate(clips)

    return sample


def without_temporal_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """The same parameters with temporal attention and convolution silent."""
    silent = ("attn_temp/to_out_0", "conv_temporal/up")
    flat = flatten_dict(params, sep="/")
    return unflatten_dict(
        {path: jnp.zeros_like(x) if any(part in path for part in silent) else x for path, x in flat.items()},
        sep="/",
    )


def before_motion_stage(params: Mapping[str, Any], image_unet: Mapping[str, Any]) -> dict[str, Any]:
    """The same parameters with the queries of the image model, and temporal layers silent."""
    unet = flatten_dict(without_temporal_layers(params["unet"]), sep="/") | flatten_dict(image_unet, sep="/")
    return {**params, "unet": unflatten_dict(unet, sep="/")}


def without_cross_frame_attention(sampler: FollowYourPosePipeline) -> FollowYourPosePipeline:
    """The same sampler, but frames attend to themselves alone, as in the image model."""
    unet = sampler.unet
    config = dataclasses.replace(unet.config, cross_frame_attention=False)
    return dataclasses.replace(sampler, unet=UNet3D(config, unet.execution))


def latent_encoder(
    sampler: FollowYourPosePipeline, params: Mapping[str, Any]
) -> Callable[[np.ndarray], np.ndarray]:
    """uint8 frames [f h w 3] -> VAE latents [f h w c]."""
    encode = jax.jit(sampler.frozen.encode_images)

    def latents(video: np.ndarray) -> np.ndarray:
        return np.asarray(encode(params, jnp.asarray(video, jnp.float32)[None] / 127.5 - 1)[0])

    return latents
