"""What a stage's networks are trained for: a batch and random numbers become one loss for each clip."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fyp_jax.diffusion.schedule import ScheduleConfig, add_noise, correlated_noise, prediction_target
from fyp_jax.models.encoders import LatentEncoders
from fyp_jax.models.pose_encoder import PoseEncoder
from fyp_jax.models.unet import UNet3D
from fyp_jax.types import Batch, Latents, Params, TextEmbeddings

KL_WEIGHT = 1e-3
"""Of the autoencoder's divergence, mean over latents, beside mean errors of pixels in [-1, 1]."""


@dataclass(frozen=True, eq=False)
class Models:
    """The models of a stage without their weights; no pose encoder where the stage uses no poses."""

    frozen: LatentEncoders
    schedule: ScheduleConfig
    unet: UNet3D
    pose_encoder: PoseEncoder | None
    noise_correlation: float = 0.0
    """Of the noise's variance, what all frames of a clip have in common."""


class NoiseSample(NamedTuple):
    """The random numbers of a step, for some clips and some of their frames."""

    t: Int[Array, "b"]
    """Training timestep of each clip."""
    noise: Latents
    """What is added to the latents."""
    posterior: Latents
    """What the VAE's latents are drawn with."""


def sample_noise(
    key: jax.Array,
    clips: Int[Array, "b"],
    frames: Int[Array, "f"],
    latent: tuple[int, int, int],
    timesteps: int,
    noise_correlation: float = 0.0,
) -> NoiseSample:
    """Random numbers by key, by a clip's place in the global batch, and by a frame's place in the clip.

    So they are the same however the batch is shared out. `latent` is (height, width, channels). All frames of
    a clip have `noise_correlation` of the noise's variance in common (`correlated_noise`).
    """

    def of_clip(clip: Int[Array, ""]) -> tuple[jax.Array, jax.Array]:
        timestep_key, frames_key = jax.random.split(jax.random.fold_in(key, clip))

        def of_frame(frame: Int[Array, ""]) -> jax.Array:
            return jax.random.normal(jax.random.fold_in(frames_key, frame), (2, *latent))

        normals = jax.vmap(of_frame)(frames)
        if noise_correlation:
            same = jax.random.normal(jax.random.fold_in(timestep_key, 1), latent)
            normals = normals.at[:, 0].set(correlated_noise(same[None], normals[:, 0], noise_correlation))
        return jax.random.randint(timestep_key, (), 0, timesteps), normals

    t, normals = jax.vmap(of_clip)(clips)
    return NoiseSample(t, normals[:, :, 0], normals[:, :, 1])


Losses = Callable[[Models, Params, Batch, NoiseSample], Float[Array, "b"]]
"""(networks, parameters of all of them, batch, random numbers) -> a loss for each clip, float32."""


def denoise(models: Models, params: Params, batch: Batch, noise_sample: NoiseSample) -> Float[Array, "b"]:
    """The diffusion loss (Follow Your Pose, eq. 2) of captioned clips, with poses where networks use them."""
    latents = models.frozen.encode_images(params, jnp.asarray(batch.video), noise_sample.posterior)
    text = models.frozen.encode_text(params, jnp.asarray(batch.input_ids))
    return diffusion_loss(models, params, latents, noise_sample, text, batch.pose_images)


def diffusion_loss(
    models: Models,
    params: Params,
    latents: Latents,
    noise_sample: NoiseSample,
    text: TextEmbeddings,
    skeleton: Float[Array | np.ndarray, "b f H W 3"] | None,
) -> Float[Array, "b"]:
    """Mean squared error of each clip's prediction (Follow Your Pose, eq. 2), in float32.

    `params` has `unet` and, for networks with one, `pose_encoder`; `skeleton` is None without it.
    """
    features = None
    if models.pose_encoder is not None:
        features = models.pose_encoder.apply({"params": params["pose_encoder"]}, skeleton)
    noisy = add_noise(latents, noise_sample.noise, noise_sample.t, models.schedule)
    prediction = models.unet.apply({"params": params["unet"]}, noisy, noise_sample.t, text, features)  # pyright: ignore
    wanted = prediction_target(latents, noise_sample.noise, noise_sample.t, models.schedule)
    error = jnp.asarray(prediction, jnp.float32) - wanted
    return jnp.mean(jnp.square(error), axis=(1, 2, 3, 4))


def autoencoder_loss(
    models: Models, params: Params, batch: Batch, noise_sample: NoiseSample
) -> Float[Array, "b"]:
    """How far the autoencoder's pictures are from those it was given: mean absolute plus mean squared error.

    Beside it the divergence of the posterior from a standard normal (Kingma and Welling 2014), of latents
    *times the scaling factor* of the VAE's config: so they come to have a variance near 1, as diffusion wants
    them, since the errors do not change when encoder and decoder agree on another scale.
    """
    frozen, video = models.frozen, jnp.asarray(batch.video)
    mean, std = (x * frozen.spec.scaling_factor for x in frozen.posterior(params, video))
    again = frozen.decode_latents(
        params, mean + std * noise_sample.posterior, chunk=video.shape[0] * video.shape[1]
    )
    error = jnp.asarray(again, jnp.float32) - video
    divergence = 0.5 * (jnp.square(mean) + jnp.square(std) - 1) - jnp.log(std)
    axes = (1, 2, 3, 4)
    pixels = jnp.mean(jnp.abs(error) + jnp.square(error), axis=axes)
    return pixels + KL_WEIGHT * jnp.mean(divergence, axis=axes)


OBJECTIVES: dict[str, Losses] = {"denoise": denoise, "reconstruct": autoencoder_loss}
"""By the name that a stage has for it."""
