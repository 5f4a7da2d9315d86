"""DDIM sampling and inversion (Song et al. 2021), over any `denoise(z, t)`; each loop is one `lax.scan`."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fyp_jax.diffusion.schedule import ScheduleConfig, predict_x0_eps
from fyp_jax.types import DenoiseFn, Latents


class DDIMSchedule(NamedTuple):
    """Moves of the latents from noise level `alpha` to `alpha_next`; the model is asked at timestep `t`."""

    t: Int[Array, "*steps"]
    alpha: Float[Array, "*steps"]
    alpha_next: Float[Array, "*steps"]


def make_ddim_schedule(schedule: ScheduleConfig, steps: int) -> DDIMSchedule:
    """From timestep to timestep downwards, and from the last one to clean latents."""
    t = schedule.timesteps(steps)
    alphas_cumprod = schedule.alphas_cumprod()
    below = t - schedule.num_train_timesteps // steps
    clean = np.float32(1) if schedule.set_alpha_to_one else alphas_cumprod[0]
    alpha_next = np.where(below < 0, clean, alphas_cumprod[np.maximum(below, 0)])
    return DDIMSchedule(jnp.asarray(t), jnp.asarray(alphas_cumprod[t]), jnp.asarray(alpha_next))


def sample(
    denoise: DenoiseFn,
    z: Latents,
    steps: int,
    schedule: ScheduleConfig,
    eta: float = 0.0,
    key: jax.Array | None = None,
) -> Latents:
    """Noise `z` of unit variance -> clean latents.

    `eta` (eq. 16) is the share of noise that is drawn anew: 0 is deterministic, 1 is DDPM. It needs a
    `key`, or ValueError.
    """
    return _follow(denoise, z, make_ddim_schedule(schedule, steps), schedule, eta, key)


def invert(denoise: DenoiseFn, z: Latents, steps: int, schedule: ScheduleConfig) -> Latents:
    """Clean latents -> the noise that `sample` (eta 0, same steps) takes back to about these latents.

    The mirror of `make_ddim_schedule`: each move goes up to timestep `t` and asks the model there, for the
    noise that it says is needed at the lower level.
    """
    down = make_ddim_schedule(schedule, steps)
    up = DDIMSchedule(down.t[::-1], down.alpha_next[::-1], down.alpha[::-1])
    return _follow(denoise, z, up, schedule)


def step(
    denoise: DenoiseFn,
    z: Latents,
    number: Int[Array | np.ndarray, ""] | int,
    moves: DDIMSchedule,
    schedule: ScheduleConfig,
    eta: float = 0.0,
    key: jax.Array | None = None,
) -> Latents:
    """One move, the one with this number. Raises ValueError for `eta` without a key."""
    if eta and key is None:
        raise ValueError(f"eta={eta} draws noise: give a key")
    t, alpha, alpha_next = (values[number] for values in moves)
    z0, eps = predict_x0_eps(denoise(z, t), z, alpha, schedule.prediction_type)
    # eq. 12: predicted z_0, direction to z_t, fresh noise of variance sigma^2 (eq. 16).
    fresh, sigma2 = 0.0, 0.0
    if eta and key is not None:
        sigma2 = eta**2 * (1 - alpha_next) / (1 - alpha) * (1 - alpha / alpha_next)
        fresh = jnp.sqrt(sigma2) * jax.random.normal(jax.random.fold_in(key, number), z.shape, z.dtype)
    return jnp.sqrt(alpha_next) * z0 + jnp.sqrt(1 - alpha_next - sigma2) * eps + fresh


def _follow(
    denoise: DenoiseFn,
    z: Latents,
    moves: DDIMSchedule,
    schedule: ScheduleConfig,
    eta: float = 0.0,
    key: jax.Array | None = None,
) -> Latents:
    def move(z: Latents, number: Int[Array, ""]) -> tuple[Latents, None]:
        return step(denoise, z, number, moves, schedule, eta, key), None

    return jax.lax.scan(move, z, jnp.arange(len(moves.t)))[0]
