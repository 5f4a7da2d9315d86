"""DDIM sampling and inversion (Song et al. 2021), over any `denoise(z, t)`; each loop is one `lax.scan`."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fyp_jax.diffusion.schedule import ScheduleConfig, to_z0_and_eps
from fyp_jax.types import Denoise, Latents


class Moves(NamedTuple):
    """Moves of the latents from noise level `alpha` to `alpha_next`; the model is asked at timestep `t`."""

    t: Int[Array, "*steps"]
    alpha: Float[Array, "*steps"]
    alpha_next: Float[Array, "*steps"]


def sampling_moves(schedule: ScheduleConfig, steps: int) -> Moves:
    """From timestep to timestep downwards, and from the last one to clean latents."""
    t = schedule.timesteps(steps)
    alphas = schedule.alphas()
    below = t - schedule.num_train_timesteps // steps
    clean = np.float32(1) if schedule.set_alpha_to_one else alphas[0]
    alpha_next = np.where(below < 0, clean, alphas[np.maximum(below, 0)])
    return Moves(jnp.asarray(t), jnp.asarray(alphas[t]), jnp.asarray(alpha_next))


def sample(
    denoise: Denoise,
    z: Latents,
    steps: int,
    schedule: ScheduleConfig,
    eta: float = 0.0,
    key: jax.Array | None = None,
    on_step: Callable[[], None] | None = None,
) -> Latents:
    """Noise `z` of unit variance -> clean latents.

    `eta` (eq. 16) is the share of noise that is drawn anew: 0 is deterministic, 1 is DDPM. It needs a
    `key`, or ValueError. `on_step` is called on the host after each step, for a progress bar.
    """
    if eta and key is None:
        raise ValueError(f"eta={eta} draws noise: give a key")

    return _follow(denoise, z, sampling_moves(schedule, steps), schedule, eta, key, on_step)


def invert(denoise: Denoise, z: Latents, steps: int, schedule: ScheduleConfig) -> Latents:
    """Clean latents -> the noise that `sample` (eta 0, same steps) takes back to about these latents.

    The mirror of `sampling_moves`: each move goes up to timestep `t` and asks the model there, for the
    noise that it says is needed at the lower level.
    """
    down = sampling_moves(schedule, steps)
    up = Moves(down.t[::-1], down.alpha_next[::-1], down.alpha[::-1])
    return _follow(denoise, z, up, schedule)


def _follow(
    denoise: Denoise,
    z: Latents,
    moves: Moves,
    schedule: ScheduleConfig,
    eta: float = 0.0,
    key: jax.Array | None = None,
    on_step: Callable[[], None] | None = None,
) -> Latents:
    def move(z: Latents, xs: tuple[Moves, Int[Array, ""]]) -> tuple[Latents, None]:
        step, i = xs
        z0, eps = to_z0_and_eps(denoise(z, step.t), z, step.alpha, schedule.prediction_type)
        # eq. 12: predicted z_0, direction to z_t, fresh noise of variance sigma^2 (eq. 16).
        fresh, sigma2 = 0.0, 0.0
        if eta and key is not None:
            sigma2 = eta**2 * (1 - step.alpha_next) / (1 - step.alpha) * (1 - step.alpha / step.alpha_next)
            fresh = jnp.sqrt(sigma2) * jax.random.normal(jax.random.fold_in(key, i), z.shape, z.dtype)
        z = jnp.sqrt(step.alpha_next) * z0 + jnp.sqrt(1 - step.alpha_next - sigma2) * eps + fresh
        if on_step is not None:
            jax.debug.callback(on_step)
        return z, None

    return jax.lax.scan(move, z, (moves, jnp.arange(len(moves.t))))[0]
