"""DDIM sampling and inversion (Song et al. 2021), over any `denoise(z, t)`; each loop is one `lax.scan`."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fyp_jax.diffusion.schedule import ScheduleConfig, predict_x0_eps
from fyp_jax.types import DenoiseFn, Latents


class DDIMSchedule(NamedTuple):
    """Steps of the latents from one noise level to the next; at each the model is called at timestep `t`."""

    t: Int[Array, "*steps"]
    alpha: Float[Array, "*steps"]
    """alphas_cumprod of the latents before the step."""
    alpha_next: Float[Array, "*steps"]
    """alphas_cumprod of the latents after the step."""


def make_ddim_schedule(
    schedule: ScheduleConfig, num_inference_steps: int, timestep_spacing: str = "leading"
) -> DDIMSchedule:
    """The steps of sampling: from each visited timestep to the next lower one, and at last to clean
    latents.

    Raises UserError as `ScheduleConfig.timesteps`, and where a model that predicts noise would start from
    noise alone, from which its prediction gives no latents.
    """
    t = schedule.timesteps(num_inference_steps, timestep_spacing)
    alphas_cumprod = schedule.alphas_cumprod()
    schedule.check_start(t)
    clean = np.float32(1) if schedule.set_alpha_to_one else alphas_cumprod[0]
    below = np.append(t[1:], t[-1] - schedule.num_train_timesteps // num_inference_steps)
    alpha_next = np.where(below < 0, clean, alphas_cumprod[np.maximum(below, 0)])
    return DDIMSchedule(jnp.asarray(t), jnp.asarray(alphas_cumprod[t]), jnp.asarray(alpha_next))


def reverse(ddim_schedule: DDIMSchedule) -> DDIMSchedule:
    """The steps of inversion: from clean latents to noise.

    Each step goes up to timestep `t` and calls the model there, for the noise that it predicts at the lower
    level.
    """
    return DDIMSchedule(ddim_schedule.t[::-1], ddim_schedule.alpha_next[::-1], ddim_schedule.alpha[::-1])


def sample(
    denoise: DenoiseFn,
    z: Latents,
    num_inference_steps: int,
    schedule: ScheduleConfig,
    eta: float = 0.0,
    key: jax.Array | None = None,
) -> Latents:
    """Noise `z` of unit variance -> clean latents.

    `eta` (eq. 16) scales the noise that each step adds: 0 is deterministic, 1 is DDPM. It needs a `key`, or
    ValueError is raised.
    """
    return _scan(denoise, z, make_ddim_schedule(schedule, num_inference_steps), schedule, eta, key)


def invert(denoise: DenoiseFn, z: Latents, num_inference_steps: int, schedule: ScheduleConfig) -> Latents:
    """Clean latents -> the noise from which `sample` (eta 0, as many steps) makes about these latents."""
    return _scan(denoise, z, reverse(make_ddim_schedule(schedule, num_inference_steps)), schedule)


def step(
    denoise: DenoiseFn,
    z: Latents,
    step_index: Int[Array | np.ndarray, ""] | int,
    ddim_schedule: DDIMSchedule,
    schedule: ScheduleConfig,
    eta: float = 0.0,
    key: jax.Array | None = None,
) -> Latents:
    """The latents after step `step_index`, counted from 0. Raises ValueError for `eta` without a key."""
    if eta and key is None:
        raise ValueError(f"eta={eta} adds noise at each step: give a key")
    t, alpha, alpha_next = (values[step_index] for values in ddim_schedule)
    x0, eps = predict_x0_eps(denoise(z, t), z, alpha, schedule.prediction_type)
    # eq. 12: predicted x_0, direction to x_t, fresh noise of variance sigma^2 (eq. 16).
    fresh, sigma2 = 0.0, 0.0
    if eta and key is not None:
        sigma2 = eta**2 * (1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next)
        fresh = jnp.sqrt(sigma2) * jax.random.normal(jax.random.fold_in(key, step_index), z.shape, z.dtype)
    return jnp.sqrt(alpha_next) * x0 + jnp.sqrt(1 - alpha_next - sigma2) * eps + fresh


def _scan(
    denoise: DenoiseFn,
    z: Latents,
    ddim_schedule: DDIMSchedule,
    schedule: ScheduleConfig,
    eta: float = 0.0,
    key: jax.Array | None = None,
) -> Latents:
    def one_step(z: Latents, step_index: Int[Array, ""]) -> tuple[Latents, None]:
        return step(denoise, z, step_index, ddim_schedule, schedule, eta, key), None

    return jax.lax.scan(one_step, z, jnp.arange(len(ddim_schedule.t)))[0]
