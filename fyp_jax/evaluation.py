"""The mini world's exam: scenes that training has not seen, sampled in several ways, and scored.

A way of sampling is a `Sample`: the model as it is shipped, or with a part of the method taken away.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32, UInt8

from fyp_jax import metrics, trees
from fyp_jax.data.mini_world.clips import (
    HELD_OUT_PAIRS,
    SIDE,
    TRAINED_PAIRS,
    Scene,
    caption,
    draw_clip,
)
from fyp_jax.data.mini_world.motions import HELD_OUT_MOTION
from fyp_jax.data.mini_world.styles import STYLES
from fyp_jax.media.pose import draw_skeleton
from fyp_jax.metrics import Estimate
from fyp_jax.models.unet import UNet3D
from fyp_jax.sampling import Sampler

FIRST_SEED = 9 * 10**6
"""Of the exam's scenes; training's are far below."""


class Question(NamedTuple):
    """What a clip is asked to be."""

    scene: Scene
    keypoints: np.ndarray
    """float [f 17 3], pixels of 64 x 64."""
    skeleton: Float32[np.ndarray, "f 64 64 3"]


def questions(count: int, frames: int, held_out_pairs: bool) -> list[Question]:
    """`count` scenes with the held-out motion; pairs and styles in turn, so that all come up."""
    pairs = HELD_OUT_PAIRS if held_out_pairs else TRAINED_PAIRS
    order = np.random.default_rng(0).permutation(len(pairs))
    asked = []
    for i in range(count):
        style = list(STYLES)[i % len(STYLES)]
        seed = FIRST_SEED + i + (10**5 if held_out_pairs else 0)
        character, background = pairs[order[i % len(pairs)]]
        scene = Scene(character, background, style, HELD_OUT_MOTION, seed)
        points = draw_clip(scene, frames).keypoints
        drawn = np.stack([draw_skeleton(joints[None], SIDE, SIDE) for joints in points])
        asked.append(Question(scene, points, drawn.astype(np.float32) / 255))
    return asked


Sample = Callable[[Question, int], UInt8[np.ndarray, "f 64 64 3"]]
"""(question, seed of the noise) -> clip."""


def as_shipped(sampler: Sampler, params: Mapping[str, Any], steps: int, guidance: float) -> Sample:
    """Pose, text, cross-frame attention, temporal layers: all of it."""

    def sample(question: Question, seed: int) -> Any:
        prompt = caption(question.scene)
        return sampler(params, prompt, question.skeleton, seed=seed, steps=steps, guidance=guidance)

    return sample


def without_pose(sampler: Sampler, params: Mapping[str, Any], steps: int, guidance: float) -> Sample:
    """The text alone."""

    def sample(question: Question, seed: int) -> Any:
        size, prompt = question.skeleton.shape[:3], caption(question.scene)
        return sampler(params, prompt, None, size=size, seed=seed, steps=steps, guidance=guidance)

    return sample


def frame_by_frame(sampler: Sampler, params: Mapping[str, Any], steps: int, guidance: float) -> Sample:
    """Each frame on its own: what the pose stage alone can do."""

    def sample(question: Question, seed: int) -> Any:
        prompt, frames = caption(question.scene), len(question.skeleton)
        seeds = [seed * 1000 + frame for frame in range(frames)]
        clips = [
            sampler(params, prompt, frame[None], seed=own, steps=steps, guidance=guidance)
            for frame, own in zip(question.skeleton, seeds, strict=True)
        ]
        return np.concatenate(clips)

    return sample


def without_temporal_layers(params: Mapping[str, Any]) -> dict[str, Any]:
    """The same parameters with temporal attention and convolution silent."""
    silent = ("attn_temp/to_out_0", "conv_temporal/up")
    flat = trees.flatten(params)
    return trees.unflatten(
        {path: jnp.zeros_like(x) if any(part in path for part in silent) else x for path, x in flat.items()}
    )


def before_motion_stage(params: Mapping[str, Any], image_unet: Mapping[str, Any]) -> dict[str, Any]:
    """The same parameters with the queries of the image model, and temporal layers silent."""
    unet = trees.flatten(without_temporal_layers(params["unet"])) | trees.flatten(image_unet)
    return {**params, "unet": trees.unflatten(unet)}


def without_cross_frame_attention(sampler: Sampler) -> Sampler:
    """The same sampler, but frames attend to themselves alone, as in the image model."""
    unet = sampler.unet
    config = dataclasses.replace(unet.config, cross_frame_attention=False)
    return dataclasses.replace(sampler, unet=UNet3D(config, unet.compute))


class Scores(NamedTuple):
    """Of one way of sampling; each field is an estimate over clips."""

    pose_accuracy: Estimate
    pose_accuracy_shuffled: Estimate
    iou: Estimate
    iou_shuffled: Estimate
    character: Estimate
    background: Estimate
    style: Estimate
    flicker: Estimate
    drift: Estimate
    latent_cosine: Estimate


def score(
    videos: Sequence[UInt8[np.ndarray, "f 64 64 3"]],
    asked: Sequence[Question],
    encode: Callable[[np.ndarray], np.ndarray],
) -> Scores:
    """Scores of clips against what they were asked to be; `encode` gives VAE latents of uint8 frames.

    Chance is the same clip scored against the pose of another question, half of the list further on.
    """
    columns: dict[str, list[float]] = {name: [] for name in Scores._fields}
    for i, (video, question) in enumerate(zip(videos, asked, strict=True)):
        scene, points = question.scene, question.keypoints
        other = asked[(i + len(asked) // 2) % len(asked)].keypoints
        right, chance = (metrics.pose_scores(video, joints, scene) for joints in (points, other))
        text = metrics.text_scores(video, points, scene)
        steady = metrics.steadiness(video, points, scene)
        row = {
            "pose_accuracy": right.accuracy,
            "pose_accuracy_shuffled": chance.accuracy,
            "iou": right.iou,
            "iou_shuffled": chance.iou,
            **{name: float(value) for name, value in text._asdict().items()},
            **steady._asdict(),
            "latent_cosine": metrics.consecutive_cosine(encode(video)),
        }
        for name, value in row.items():
            columns[name].append(value)
    return Scores(**{name: metrics.estimate(values) for name, values in columns.items()})


def latent_encoder(sampler: Sampler, params: Mapping[str, Any]) -> Callable[[np.ndarray], np.ndarray]:
    """uint8 frames [f h w 3] -> VAE latents [f h w c]."""
    encode = jax.jit(sampler.frozen.encode_images)

    def latents(video: np.ndarray) -> np.ndarray:
        return np.asarray(encode(params, jnp.asarray(video, jnp.float32)[None] / 127.5 - 1)[0])

    return latents


def rows(results: Mapping[str, Scores]) -> Iterator[str]:
    """A Markdown table, a way of sampling a row."""
    names = [name.replace("_", " ") for name in Scores._fields]
    yield "| | " + " | ".join(names) + " |"
    yield "|---" * (len(names) + 1) + "|"
    for name, scores in results.items():
        digits = [1 if field in ("flicker", "drift") else 3 for field in Scores._fields]
        cells = [
            f"{value.mean:.{d}f} ({value.low:.{d}f} to {value.high:.{d}f})"
            for value, d in zip(scores, digits, strict=True)
        ]
        yield f"| {name} | " + " | ".join(cells) + " |"
