"""Classifier-free guidance: the UNet and two texts become one `denoise(z, t)`, on one device or on a mesh."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from fyp_jax.models.execution import AttentionHook
from fyp_jax.models.unet import UNet3D
from fyp_jax.parallel.sharded_params import fsdp_shard_map
from fyp_jax.types import DenoiseFn, FeatureMaps, Latents, Params, TextEmbeddings


def cfg_denoiser(
    unet: UNet3D,
    params: Params,
    text: TextEmbeddings,
    negative: TextEmbeddings,
    pose_features: Sequence[FeatureMaps] | None,
    guidance_scale: float | Float[Array, ""],
    pose_guidance: bool = False,
    mesh: Mesh | None = None,
) -> DenoiseFn:
    """Classifier-free guidance (Ho and Salimans 2022): negative + guidance_scale * (text - negative).

    The conditional and the unconditional branch run as one batch. Both get the pose, so that guidance acts on
    the text alone. With `pose_guidance` the unconditional branch gets no pose, so that guidance acts on the
    pose too (the guess mode of Zhang et al. 2023). On a mesh, the devices along its axis `data` compute one
    branch each, those along `frame` (the UNet's `frame_axis`) some of the frames; parameters are placed by
    `shard_params`.
    """
    texts = jnp.concatenate([negative, text])
    poses = None if pose_features is None else _pose_branches(pose_features, pose_guidance)
    branch_weights = _branch_weights(guidance_scale)
    predict = functools.partial(_predict, unet)

    def denoise(z: Latents, t: Int[Array, ""]) -> Latents:
        if mesh is None:
            return predict(params, z, t, texts, poses, branch_weights)

        def on_device(params: Params, *args: Any) -> Latents:
            return jax.lax.psum(predict(params, *args), "data")

        branches, frames = P("data"), P(None, "frame")
        specs = (frames, P(), branches, None if poses is None else P("data", "frame"), branches)
        mapped = fsdp_shard_map(on_device, params, mesh, specs, frames)
        return mapped(params, z, t, texts, poses, branch_weights)

    return denoise


KeyFrame = dict[str, tuple[Array, Array]]
"""Keys and values of the clip's frame 0 in each cross-frame attention, [branches 1 n h d], by the layer's
path."""


def predict_windows(
    unet: UNet3D,
    params: Params,
    windows: Float[Array, "g k h w c"],
    t: Int[Array, ""],
    text: TextEmbeddings,
    negative: TextEmbeddings,
    pose_features: Sequence[Float[Array, "g k _ _ _"]] | None,
    guidance_scale: float | Float[Array, ""],
    pose_guidance: bool = False,
    mesh: Mesh | None = None,
    key_frame: KeyFrame | None = None,
) -> tuple[Float[Array, "g k h w c"], KeyFrame]:
    """Predictions, with guidance as in `cfg_denoiser`, for windows of one clip, and the clip's key frame.

    Cross-frame attention reads frame 0 of the clip wherever it would read frame 0 of the window. `key_frame`
    is what an earlier call gave; None says that the first of these windows begins at frame 0. Pose features
    have the shape [g k ...]. On a mesh, each device along `data` computes a window of its own with both
    branches.
    """
    texts, weights = jnp.concatenate([negative, text]), _branch_weights(guidance_scale)

    def one_window(
        params: Params, z: Latents, poses: Any, t: Array, texts: Array, weights: Array, key_frame: Any
    ) -> tuple[Latents, KeyFrame]:
        found: KeyFrame = {}
        hook = _key_frame_hook(found, key_frame, None if mesh is None else "data")
        hooked = unet.clone(execution=dataclasses.replace(unet.execution, attention_hook=hook))
        poses = None if poses is None else _pose_branches(poses, pose_guidance)
        return _predict(hooked, params, z, t, texts, poses, weights), found

    if mesh is not None:
        by_window = P("data", "frame")
        specs = by_window, None if pose_features is None else by_window, P(), P(), P()
        specs += (None if key_frame is None else P(),)
        mapped = fsdp_shard_map(one_window, params, mesh, specs, (by_window, P()))
        return mapped(params, windows, pose_features, t, texts, weights, key_frame)
    predictions = []
    for i in range(len(windows)):
        poses = None if pose_features is None else [pose[i : i + 1] for pose in pose_features]
        prediction, key_frame = one_window(params, windows[i : i + 1], poses, t, texts, weights, key_frame)
        predictions.append(prediction)
    return jnp.concatenate(predictions), key_frame or {}


def _key_frame_hook(found: KeyFrame, key_frame: KeyFrame | None, axis: str | None) -> AttentionHook:
    """A hook that puts the key frame in place of a window's frame 0, and collects it in `found`.

    Without a `key_frame` it is the frame 0 of this window, or on a mesh that of the first device along
    `axis`.
    """

    def hook(path: str, q: Array, keys: Sequence[Array], values: Sequence[Array]) -> Any:
        if len(keys) == 1:  # no cross-frame attention
            return q, keys, values
        first = keys[0], values[0]
        if key_frame is not None:
            first = key_frame[path]
        elif axis is not None:
            own = jax.lax.axis_index(axis) == 0
            first = tuple(jax.lax.psum(jnp.where(own, x, 0), axis) for x in first)
        found[path] = first
        return q, [first[0], *keys[1:]], [first[1], *values[1:]]

    return hook


def _pose_branches(pose_features: Sequence[FeatureMaps], pose_guidance: bool) -> list[Array]:
    return [jnp.concatenate([jnp.zeros_like(x) if pose_guidance else x, x]) for x in pose_features]


def _branch_weights(guidance_scale: float | Float[Array, ""]) -> Float[Array, "2"]:
    """negative + scale * (text - negative) as a weighted sum over branches, on whichever devices they are."""
    return jnp.stack([1 - jnp.asarray(guidance_scale), jnp.asarray(guidance_scale)])


def _predict(
    unet: UNet3D,
    params: Params,
    z: Latents,
    t: Array,
    texts: Float[Array, "branches l d"],
    poses: Any,
    branch_weights: Array,
) -> Latents:
    batch = jnp.concatenate([z] * len(texts))
    branches = unet.apply({"params": params}, batch, jnp.broadcast_to(t, len(batch)), texts, poses)
    weighted = branch_weights.reshape(-1, 1, 1, 1, 1) * jnp.asarray(branches, z.dtype)
    return weighted.sum(axis=0, keepdims=True)
