"""What a stage's networks are trained for: a batch and random numbers become one loss for each clip."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fyp_jax.diffusion.schedule import ScheduleConfig, add_noise, mixed_noise, target
from fyp_jax.models.frozen import FrozenModels
from fyp_jax.models.pose_encoder import PoseEncoder
from fyp_jax.models.unet import UNet3D
from fyp_jax.types import Batch, Latents, Params, Text

KL_WEIGHT = 1e-3
"""Of the autoencoder's divergence, mean over latents, beside mean errors of pixels in [-1, 1]."""


@dataclass(frozen=True, eq=False)
class Networks:
    """The models of a stage without their weights; no pose encoder where the stage uses no poses."""

    frozen: FrozenModels
    schedule: ScheduleConfig
    unet: UNet3D
    pose_encoder: PoseEncoder | None
    shared_noise: float = 0.0
    """Of the noise's variance, what all frames of a clip have in common."""


class Draws(NamedTuple):
    """The random numbers of a step, for some clips and some of their frames."""

    t: Int[Array, "b"]
    """Training timestep of each clip."""
    noise: Latents
    """What is added to the latents."""
    posterior: Latents
    """What the VAE's latents are drawn with."""


def draw(
    key: jax.Array,
    clips: Int[Array, "b"],
    frames: Int[Array, "f"],
    latent: tuple[int, int, int],
    timesteps: int,
    shared_noise: float = 0.0,
) -> Draws:
    """Random numbers by key, by a clip's place in the global batch, and by a frame's place in the clip.

    So they are the same however the batch is shared out. `latent` is (height, width, channels). All frames of
    a clip have `shared_noise` of the noise's variance in common (`mixed_noise`).
    """

    def of_clip(clip: Int[Array, ""]) -> tuple[jax.Array, jax.Array]:
        timestep_key, frames_key = jax.random.split(jax.random.fold_in(key, clip))

        def of_frame(frame: Int[Array, ""]) -> jax.Array:
            return jax.random.normal(jax.random.fold_in(frames_key, frame), (2, *latent))

        normals = jax.vmap(of_frame)(frames)
        if shared_noise:
            same = jax.random.normal(jax.random.fold_in(timestep_key, 1), latent)
            normals = normals.at[:, 0].set(mixed_noise(same[None], normals[:, 0], shared_noise))
        return jax.random.randint(timestep_key, (), 0, timesteps), normals

    t, normals = jax.vmap(of_clip)(clips)
    return Draws(t, normals[:, :, 0], normals[:, :, 1])


Losses = Callable[[Networks, Params, Batch, Draws], Float[Array, "b"]]
"""(networks, parameters of all of them, batch, random numbers) -> a loss for each clip, float32."""


def denoise(networks: Networks, params: Params, batch: Batch, draws: Draws) -> Float[Array, "b"]:
    """The diffusion loss (Follow Your Pose, eq. 2) of captioned clips, with poses where networks use them."""
    latents = networks.frozen.encode_images(params, jnp.asarray(batch.video), draws.posterior)
    text = networks.frozen.encode_text(params, jnp.asarray(batch.ids))
    return clip_losses(networks, params, latents, draws, text, batch.skeleton)


def clip_losses(
    networks: Networks,
    params: Params,
    latents: Latents,
    draws: Draws,
    text: Text,
    skeleton: Float[Array | np.ndarray, "b f H W 3"] | None,
) -> Float[Array, "b"]:
    """Mean squared error of each clip's prediction (Follow Your Pose, eq. 2), in float32.

    `params` has `unet` and, for networks with one, `pose_encoder`; `skeleton` is None without it.
    """
    features = None
    if networks.pose_encoder is not None:
        features = networks.pose_encoder.apply({"params": params["pose_encoder"]}, skeleton)
    noisy = add_noise(latents, draws.noise, draws.t, networks.schedule)
    prediction = networks.unet.apply({"params": params["unet"]}, noisy, draws.t, text, features)  # pyright: ignore
    wanted = target(latents, draws.noise, draws.t, networks.schedule)
    error = jnp.asarray(prediction, jnp.float32) - wanted
    return jnp.mean(jnp.square(error), axis=(1, 2, 3, 4))


def reconstruct(networks: Networks, params: Params, batch: Batch, draws: Draws) -> Float[Array, "b"]:
    """How far the autoencoder's pictures are from those it was given: mean absolute plus mean squared error.

    Beside it the divergence of the posterior from a standard normal (Kingma and Welling 2014), of latents
    *times the scaling factor* of the VAE's config: so they come to have a variance near 1, as diffusion wants
    them, since the errors do not change when encoder and decoder agree on another scale.
    """
    frozen, video = networks.frozen, jnp.asarray(batch.video)
    mean, std = (x * frozen.facts.scaling_factor for x in frozen.posterior(params, video))
    again = frozen.decode_latents(params, mean + std * draws.posterior, chunk=video.shape[0] * video.shape[1])
    error = jnp.asarray(again, jnp.float32) - video
    divergence = 0.5 * (jnp.square(mean) + jnp.square(std) - 1) - jnp.log(std)
    axes = (1, 2, 3, 4)
    pixels = jnp.mean(jnp.abs(error) + jnp.square(error), axis=axes)
    return pixels + KL_WEIGHT * jnp.mean(divergence, axis=axes)


OBJECTIVES: dict[str, Losses] = {"denoise": denoise, "reconstruct": reconstruct}
"""By the name that a stage has for it."""
