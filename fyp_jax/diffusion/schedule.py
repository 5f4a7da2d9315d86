"""The noise schedule of Stable Diffusion, and the timesteps that a sampler visits.

Notation is DDIM's (Song et al. 2021): alpha_t is the product of (1 - beta_s) over s <= t, which diffusers
calls alphas_cumprod, so that x_t = sqrt(alpha_t) x_0 + sqrt(1 - alpha_t) eps. x is a latent here.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fyp_jax.errors import UserError
from fyp_jax.types import Latents

# The fields of a scheduler_config.json that change the numbers, with the values that are implemented.
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
    """True: the last step goes to alpha = 1. False: to alpha of training timestep 0."""
    prediction_type: str = "epsilon"

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "ScheduleConfig":
        """A schedule from the `scheduler_config.json` of any scheduler class.

        SD 1.x ships a PNDM config, whose fields mean the same to DDIM, except for sample clipping: PNDM does
        not clip, and a config without the field gets no clipping. Raises UserError for a field with a value
        that is not implemented.
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
        """alpha_t of each training timestep, float32 [num_train_timesteps], falling from 1 to 0."""
        count = self.num_train_timesteps
        if self.beta_schedule == "scaled_linear":
            betas = np.linspace(self.beta_start**0.5, self.beta_end**0.5, count) ** 2
        else:
            betas = np.linspace(self.beta_start, self.beta_end, count)
        return np.cumprod(1 - betas).astype(np.float32)

    def timesteps(self, num_inference_steps: int) -> np.ndarray:
        """Timesteps to visit, int32 [num_inference_steps], falling: each (1000 // steps)-th, plus
        `steps_offset`.

        Raises UserError where the number is not 1 or more, or the first timestep would be past the last one
        of training.
        """
        steps = num_inference_steps
        if not 1 <= steps <= self.num_train_timesteps:
            raise UserError(f"num_inference_steps={steps} is not between 1 and {self.num_train_timesteps}")
        spacing = self.num_train_timesteps // steps
        visited = np.arange(steps - 1, -1, -1) * spacing + self.steps_offset
        if visited[0] >= self.num_train_timesteps:
            largest = (self.num_train_timesteps - 1 - self.steps_offset) // spacing + 1
            raise UserError(
                f"num_inference_steps={steps} would begin at timestep {visited[0]}; use at most {largest}"
            )
        return visited.astype(np.int32)


def add_noise(x0: Latents, noise: Latents, t: Int[Array, "b"], schedule: ScheduleConfig) -> Latents:
    """x_t = sqrt(alpha_t) x_0 + sqrt(1 - alpha_t) eps, with a training timestep for each clip."""
    alpha = jnp.asarray(schedule.alphas_cumprod())[t][:, None, None, None, None]
    return jnp.sqrt(alpha) * x0 + jnp.sqrt(1 - alpha) * noise


def correlated_noise(
    common: Float[Array, "..."], own: Float[Array, "..."], noise_correlation: float
) -> Float[Array, "..."]:
    """Standard normal noise from two standard normal arrays: `common` to all frames of a clip, and each
    frame's own.

    `noise_correlation` is the fraction of the variance that is common, and so the correlation of two frames
    (Ge et al. 2023, Preserve Your Own Correlation, section 4.2).
    """
    return jnp.sqrt(noise_correlation) * common + jnp.sqrt(1 - noise_correlation) * own


def prediction_target(x0: Latents, noise: Latents, t: Int[Array, "b"], schedule: ScheduleConfig) -> Latents:
    """What a model learns to predict at x_t: the noise, or v where the schedule says so
    (`predict_x0_eps`)."""
    if schedule.prediction_type == "epsilon":
        return noise
    alpha = jnp.asarray(schedule.alphas_cumprod())[t][:, None, None, None, None]
    return jnp.sqrt(alpha) * noise - jnp.sqrt(1 - alpha) * x0


def predict_x0_eps(
    prediction: Latents, z: Latents, alpha: Float[Array, ""], prediction_type: str
) -> tuple[Latents, Latents]:
    """The clean latents and the noise that a prediction at x_t = `z` stands for.

    Epsilon: x_0 = (x_t - sqrt(1 - alpha) eps) / sqrt(alpha) (DDIM, eq. 9).
    v = sqrt(alpha) eps - sqrt(1 - alpha) x_0 (Salimans and Ho 2022, section 4).
    """
    signal, noise = jnp.sqrt(alpha), jnp.sqrt(1 - alpha)
    if prediction_type == "v_prediction":
        return signal * z - noise * prediction, signal * prediction + noise * z
    return (z - noise * prediction) / signal, prediction
