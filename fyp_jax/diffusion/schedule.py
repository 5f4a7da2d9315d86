"""The noise schedule of Stable Diffusion, and which of its timesteps a sampler visits.

Notation is DDIM's (Song et al. 2021): alpha_t is the product of (1 - beta_s) over s <= t, so that
z_t = sqrt(alpha_t) z_0 + sqrt(1 - alpha_t) eps.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fyp_jax.errors import UserError
from fyp_jax.types import Latents

# Each choice that a scheduler_config.json can make and that would change the numbers; only these are built.
SUPPORTED = {
    "beta_schedule": ("scaled_linear", "linear"),
    "prediction_type": ("epsilon", "v_prediction"),
    "clip_sample": (False,),
    "thresholding": (False,),
    "timestep_spacing": ("leading",),
    "rescale_betas_zero_snr": (False,),
    "trained_betas": (None,),
}


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """Field names of a diffusers `scheduler_config.json`; defaults are Stable Diffusion 1.x."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    steps_offset: int = 1
    set_alpha_to_one: bool = False
    """What stands behind the last step: alpha = 1, or alpha of training timestep 0."""
    prediction_type: str = "epsilon"

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "ScheduleConfig":
        """From `scheduler_config.json` of any scheduler class; UserError for a process that is not built.

        SD 1.x ships a PNDM config, whose fields mean the same to DDIM, but for sample clipping: PNDM has
        none, and a config without the field gets none.
        """
        for name, allowed in SUPPORTED.items():
            if name in values and values[name] not in allowed:
                raise UserError(
                    f"scheduler config: {name}={values[name]!r} is not supported, only {list(allowed)}"
                )
        known = {field.name: values[field.name] for field in dataclasses.fields(cls) if field.name in values}
        for name, value in known.items():
            kind = type(getattr(cls, name))
            if not isinstance(value, (int, float) if kind is float else kind):
                raise UserError(f"scheduler config: {name}={value!r} is not a {kind.__name__}")
        return cls(**known)

    def alphas_cumprod(self) -> np.ndarray:
        """alpha_t for each training timestep, float32 [num_train_timesteps], falling from 1 to 0."""
        count = self.num_train_timesteps
        if self.beta_schedule == "scaled_linear":
            betas = np.linspace(self.beta_start**0.5, self.beta_end**0.5, count) ** 2
        else:
            betas = np.linspace(self.beta_start, self.beta_end, count)
        return np.cumprod(1 - betas).astype(np.float32)

    def timesteps(self, steps: int) -> np.ndarray:
        """int32 [steps], falling: every (1000 // steps)-th training timestep, shifted by `steps_offset`.

        Raises UserError unless 1 <= steps and the first one is a training timestep.
        """
        if not 1 <= steps <= self.num_train_timesteps:
            raise UserError(f"steps={steps} is not between 1 and {self.num_train_timesteps}")
        spacing = self.num_train_timesteps // steps
        visited = np.arange(steps - 1, -1, -1) * spacing + self.steps_offset
        if visited[0] >= self.num_train_timesteps:
            largest = (self.num_train_timesteps - 1 - self.steps_offset) // spacing + 1
            raise UserError(f"steps={steps} would begin at timestep {visited[0]}; use at most {largest}")
        return visited.astype(np.int32)


def add_noise(z0: Latents, noise: Latents, t: Int[Array, "b"], schedule: ScheduleConfig) -> Latents:
    """z_t = sqrt(alpha_t) z_0 + sqrt(1 - alpha_t) eps, with a training timestep for each clip."""
    alpha = jnp.asarray(schedule.alphas_cumprod())[t][:, None, None, None, None]
    return jnp.sqrt(alpha) * z0 + jnp.sqrt(1 - alpha) * noise


def correlated_noise(
    same: Float[Array, "..."], own: Float[Array, "..."], shared: float
) -> Float[Array, "..."]:
    """Standard normal, from two such; `shared` is the share of the variance that comes from `same`.

    Ge et al. 2023 (Preserve Your Own Correlation), section 4.2: `same` for all frames of a clip.
    """
    return jnp.sqrt(shared) * same + jnp.sqrt(1 - shared) * own


def prediction_target(z0: Latents, noise: Latents, t: Int[Array, "b"], schedule: ScheduleConfig) -> Latents:
    """What a model shall predict at z_t: the noise, or v where the schedule says so (`predict_x0_eps`)."""
    if schedule.prediction_type == "epsilon":
        return noise
    alpha = jnp.asarray(schedule.alphas_cumprod())[t][:, None, None, None, None]
    return jnp.sqrt(alpha) * noise - jnp.sqrt(1 - alpha) * z0


def predict_x0_eps(
    prediction: Latents, z: Latents, alpha: Float[Array, ""], prediction_type: str
) -> tuple[Latents, Latents]:
    """The clean latents and the noise that a prediction at z_t stands for.

    Epsilon: z_0 = (z_t - sqrt(1 - alpha) eps) / sqrt(alpha) (DDIM, eq. 9).
    v = sqrt(alpha) eps - sqrt(1 - alpha) z_0 (Salimans and Ho 2022, section 4).
    """
    signal, noise = jnp.sqrt(alpha), jnp.sqrt(1 - alpha)
    if prediction_type == "v_prediction":
        return signal * z - noise * prediction, signal * prediction + noise * z
    return (z - noise * prediction) / signal, prediction
