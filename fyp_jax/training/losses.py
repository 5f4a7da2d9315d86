"""The losses of the training stages: a batch and random numbers become one loss for each clip."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fyp_jax.diffusion.schedule import ScheduleConfig, add_noise, correlated_noise, prediction_target
from fyp_jax.models.encoders import LatentEncoders
from fyp_jax.models.pose_encoder import PoseEncoder
from fyp_jax.models.unet import UNet3D
from fyp_jax.training.config import LossConfig
from fyp_jax.types import Batch, LatentBatch, Latents, Params, TextEmbeddings


@dataclass(frozen=True, eq=False)
class Models:
    """The models of a stage without their weights; no pose encoder where the stage uses no poses."""

    encoders: LatentEncoders
    schedule: ScheduleConfig
    unet: UNet3D
    pose_encoder: PoseEncoder | None
    noise_correlation: float = 0.0
    """Fraction of the noise's variance that all frames of a clip have in common."""
    loss: LossConfig = field(default_factory=LossConfig)
    cached_latents: bool = False
    """Whether a batch is a `LatentBatch`, so that no step runs the encoders."""


class NoiseSample(NamedTuple):
    """The random numbers of a step, for some clips and some of their frames."""

    t: Int[Array, "b"]
    """Training timestep of each clip."""
    noise: Latents
    """Noise that is added to the latents."""
    posterior: Latents
    """Noise with which the VAE's latents are sampled."""


def sample_noise(
    key: jax.Array,
    clips: Int[Array, "b"],
    frames: Int[Array, "f"],
    latent: tuple[int, int, int],
    timesteps: int,
    noise_correlation: float = 0.0,
) -> NoiseSample:
    """Random numbers that depend on the key, a clip's index in the global batch, and a frame's index in its
    clip.

    So they are the same however the batch is divided over devices. `latent` is (height, width, channels). All
    frames of a clip have `noise_correlation` of the noise's variance in common (`correlated_noise`).
    """

    def one_clip(clip: Int[Array, ""]) -> tuple[jax.Array, jax.Array]:
        timestep_key, frames_key = jax.random.split(jax.random.fold_in(key, clip))

        def one_frame(frame: Int[Array, ""]) -> jax.Array:
            return jax.random.normal(jax.random.fold_in(frames_key, frame), (2, *latent))

        normals = jax.vmap(one_frame)(frames)
        if noise_correlation:
            common = jax.random.normal(jax.random.fold_in(timestep_key, 1), latent)
            mixed = correlated_noise(common[None], normals[:, 0], noise_correlation)
            normals = normals.at[:, 0].set(mixed)
        return jax.random.randint(timestep_key, (), 0, timesteps), normals

    t, normals = jax.vmap(one_clip)(clips)
    return NoiseSample(t, normals[:, :, 0], normals[:, :, 1])


LossFn = Callable[[Models, Params, Any, NoiseSample], Float[Array, "b"]]
"""(models, parameters of all of them, batch, random numbers) -> a loss for each clip, float32."""


def diffusion(models: Models, params: Params, batch: Batch, noise_sample: NoiseSample) -> Float[Array, "b"]:
    """`diffusion_loss` of captioned clips: video and captions are encoded here, poses where the models use
    them."""
    latents = models.encoders.encode_images(params, jnp.asarray(batch.video), noise_sample.posterior)
    text = models.encoders.encode_text(params, jnp.asarray(batch.input_ids))
    return diffusion_loss(models, params, latents, noise_sample, text, batch.pose_images)


def cached_diffusion(
    models: Models, params: Params, batch: LatentBatch, noise_sample: NoiseSample
) -> Float[Array, "b"]:
    """`diffusion_loss` of cached latents: `diffusion` of the clips that they were made of."""
    mean, std = jnp.asarray(batch.mean), jnp.asarray(batch.std)
    latents = (mean + std * noise_sample.posterior) * models.encoders.spec.scaling_factor
    text = jnp.asarray(batch.text, models.encoders.dtype)
    return diffusion_loss(models, params, latents, noise_sample, text, batch.pose_images)


def diffusion_loss(
    models: Models,
    params: Params,
    latents: Latents,
    noise_sample: NoiseSample,
    text: TextEmbeddings,
    pose_images: Float[Array | np.ndarray, "b f H W 3"] | None,
) -> Float[Array, "b"]:
    """Mean squared error of the prediction for each clip (Follow Your Pose, eq. 2), in float32, times
    `snr_weight` where the config asks for it.

    `params` has `unet` and, for models with one, `pose_encoder`; `pose_images` is None without it.
    """
    features = None
    if models.pose_encoder is not None:
        features = models.pose_encoder.apply({"params": params["pose_encoder"]}, pose_images)
    noisy = add_noise(latents, noise_sample.noise, noise_sample.t, models.schedule)
    prediction = models.unet.apply({"params": params["unet"]}, noisy, noise_sample.t, text, features)  # pyright: ignore
    target = prediction_target(latents, noise_sample.noise, noise_sample.t, models.schedule)
    error = jnp.asarray(prediction, jnp.float32) - target
    loss = jnp.mean(jnp.square(error), axis=(1, 2, 3, 4))
    if models.loss.min_snr_gamma is not None:
        loss *= snr_weight(noise_sample.t, models.schedule, models.loss.min_snr_gamma)
    return loss


def snr_weight(t: Int[Array, "b"], schedule: ScheduleConfig, gamma: float) -> Float[Array, "b"]:
    """Weight of each timestep's loss by its signal-to-noise ratio (Min-SNR; Hang et al. 2023, section 3.4).

    The error of x_0 has the weight min(SNR, gamma). Divided by SNR that is the weight of the noise's error,
    and divided by SNR + 1 that of v's.
    """
    alpha = jnp.asarray(schedule.alphas_cumprod())[t]
    snr = alpha / (1 - alpha)
    of_x0 = jnp.minimum(snr, gamma)
    return of_x0 / (snr + 1 if schedule.prediction_type == "v_prediction" else snr)


def autoencoder_loss(
    models: Models, params: Params, batch: Batch, noise_sample: NoiseSample
) -> Float[Array, "b"]:
    """Error of the autoencoder's reconstruction, mean absolute plus mean squared, plus a KL divergence.

    `loss.edge_weight` adds the mean absolute error of the differences of neighbouring pixels, so that an edge
    in the right place with the right sharpness counts more than a flat area.

    The divergence is the posterior's from a standard normal (Kingma and Welling 2014), for latents *times the
    scaling factor* of the VAE's config. So these latents come to have a variance near 1, as diffusion wants
    them: the errors alone do not change when encoder and decoder agree on another scale.
    """
    encoders, video = models.encoders, jnp.asarray(batch.video)
    mean, std = (x * encoders.spec.scaling_factor for x in encoders.posterior(params, video))
    latents = mean + std * noise_sample.posterior
    decoded = encoders.decode_latents(params, latents, chunk=video.shape[0] * video.shape[1])
    error = jnp.asarray(decoded, jnp.float32) - video
    divergence = 0.5 * (jnp.square(mean) + jnp.square(std) - 1) - jnp.log(std)
    axes = (1, 2, 3, 4)
    loss = jnp.mean(jnp.abs(error) + jnp.square(error), axis=axes)
    if models.loss.edge_weight:
        edges = sum(jnp.mean(jnp.abs(jnp.diff(error, axis=axis)), axis=axes) for axis in (2, 3))
        loss += models.loss.edge_weight * edges
    return loss + models.loss.kl_weight * jnp.mean(divergence, axis=axes)


LOSSES: dict[str, LossFn] = {"diffusion": diffusion, "autoencoder": autoencoder_loss}
"""Losses by the name that a stage gives (`training.stages`)."""
CACHED_LOSSES: dict[str, LossFn] = {"diffusion": cached_diffusion}
"""The same losses of cached latents; the others need pixels."""


def loss_of(name: str, models: Models) -> LossFn:
    """The loss of this name, for the batches that the models take."""
    return (CACHED_LOSSES if models.cached_latents else LOSSES)[name]
