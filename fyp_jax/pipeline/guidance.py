"""Classifier-free guidance: the UNet and two texts become one `denoise(z, t)`, on one device or on a mesh."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

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
    poses = None
    if pose_features is not None:
        poses = [
            jnp.concatenate([jnp.zeros_like(pose) if pose_guidance else pose, pose]) for pose in pose_features
        ]

    # negative + scale * (text - negative), as a weighted sum over branches, on whichever devices they are.
    branch_weights = jnp.stack([1 - jnp.asarray(guidance_scale), jnp.asarray(guidance_scale)])

    def predict(
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
