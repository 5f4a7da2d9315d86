"""The noise schedule of Stable Diffusion, and the timesteps that a sampler visits.

Notation is DDIM's (Song et al. 2021): alpha_t is the product of (1 - beta_s) over s <= t, which diffusers
calls alphas_cumprod, so that x_t = sqrt(alpha_t) x_0 + sqrt(1 - alpha_t) eps. x is a latent here.
"""

import dataclasses
import logging
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fyp_jax.errors import UserError
from fyp_jax.types import Latents

log = logging.getLogger(__name__)

MAX_TRAIN_TIMESTEPS = 100_000

# Fields of a scheduler_config.json that define the noise of training, with the values that are implemented.
SUPPORTED = {
    "beta_schedule": ("scaled_linear", "linear", "squaredcos_cap_v2"),
    "prediction_type": ("epsilon", "v_prediction", "sample"),
    "final_sigmas_type": ("zero", "sigma_min"),
}
# Fields of samplers alone, with what ours does: another value makes other steps, but it is the same model.
SAMPLER_FIELDS = {
    "timestep_spacing": "leading",
    "clip_sample": False,
    "thresholding": False,
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
}
MAX_BETA = 0.999
"""Upper limit of a beta of the cosine schedule (Nichol and Dhariwal 2021, section 3.2)."""


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """Field names of a diffusers `scheduler_config.json`; defaults are Stable Diffusion 1.x."""

    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    steps_offset: int = 1
    set_alpha_to_one: bool = False
    """True: the last step of DDIM goes to alpha = 1. False: to alpha of training timestep 0."""
    final_sigmas_type: str = "zero"
    """Where the last step of a multistep solver goes: to alpha = 1, or ("sigma_min") to alpha of training
    timestep 0."""
    prediction_type: str = "epsilon"
    rescale_betas_zero_snr: bool = False
    """True: the last training timestep is noise alone (Lin et al. 2023)."""
    trained_betas: tuple[float, ...] | None = None
    """The betas themselves, in place of a beta schedule."""

    def __post_init__(self):
        """Raise UserError for values that make no noise schedule."""
        for name, allowed in SUPPORTED.items():
            if getattr(self, name) not in allowed:
                raise UserError(
                    f"scheduler config: {name}={getattr(self, name)!r} is not supported, only {list(allowed)}"
                )
        if not 1 <= self.num_train_timesteps <= MAX_TRAIN_TIMESTEPS or self.steps_offset < 0:
            raise UserError(
                f"scheduler config: num_train_timesteps={self.num_train_timesteps} "
                f"steps_offset={self.steps_offset} make no timesteps"
            )
        betas = self.betas()
        if len(betas) != self.num_train_timesteps:
            raise UserError(
                f"scheduler config: {len(betas)} trained_betas for {self.num_train_timesteps} timesteps"
            )
        if not np.all((betas >= 0) & (betas <= 1)):
            raise UserError("scheduler config: the betas are not all between 0 and 1")

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "ScheduleConfig":
        """A schedule from the `scheduler_config.json` of any scheduler class.

        What the model was trained with is taken: betas, the rescaling to zero signal, and what the model
        predicts. The class, spacing and clipping belong to the sampler that somebody else chose; a warning
        tells where spacing and clipping are not those of our DDIM. Raises UserError for a value that is not
        implemented, and for a class that has no betas.
        """
        kind, betas = values.get("_class_name"), values.get("trained_betas")
        needed = ("beta_schedule", "beta_start", "beta_end")
        missing = [name for name in needed if name not in values]
        if kind is not None and betas is None and missing:
            raise UserError(
                f"scheduler config: {kind} without {', '.join(missing)} is no noise schedule of a Stable "
                "Diffusion 1.x or 2.x"
            )
        foreign = [
            f"{name}={values[name]!r}"
            for name, ours in SAMPLER_FIELDS.items()
            if values.get(name, ours) != ours
        ]
        if foreign:
            log.warning(
                "scheduler config: %s %s not used: sampling is DDIM with leading timesteps, or as solver and "
                "timestep_spacing say, and has no clipping",
                " ".join(foreign),
                "is" if len(foreign) == 1 else "are",
            )
        known: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            value, kind = values.get(field.name, field.default), type(field.default)
            if field.name != "trained_betas":
                # type() and not isinstance: True is an int.
                if type(value) not in ((int, float) if kind is float else (kind,)):
                    raise UserError(f"scheduler config: {field.name}={value!r} is not a {kind.__name__}")
                known[field.name] = kind(value)
        if betas is not None:
            if not isinstance(betas, (list, tuple)) or not all(type(x) in (int, float) for x in betas):
                raise UserError("scheduler config: trained_betas is not a list of numbers")
            known["trained_betas"] = tuple(float(x) for x in betas)
        return cls(**known)

    def alphas_cumprod(self) -> np.ndarray:
        """alpha_t of each training timestep, float32 [num_train_timesteps], falling from 1 to 0."""
        alphas_cumprod = np.cumprod(1 - self.betas())
        if self.rescale_betas_zero_snr:
            # Lin et al. 2023, algorithm 1: shift the roots so that the last is 0, and scale so that the first
            # stays.
            roots = np.sqrt(alphas_cumprod)
            alphas_cumprod = ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2
        return alphas_cumprod.astype(np.float32)

    def betas(self) -> np.ndarray:
        """The variance that each training timestep adds, before rescaling: float64 [num_train_timesteps]."""
        count = self.num_train_timesteps
        if self.trained_betas is not None:
            return np.asarray(self.trained_betas, np.float64)
        if self.beta_schedule == "scaled_linear":
            return np.linspace(self.beta_start**0.5, self.beta_end**0.5, count) ** 2
        if self.beta_schedule == "linear":
            return np.linspace(self.beta_start, self.beta_end, count)
        # Nichol and Dhariwal 2021, eq. 17
        signal = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.minimum(1 - signal[1:] / signal[:-1], MAX_BETA)

    def timesteps(self, num_inference_steps: int, timestep_spacing: str = "leading") -> np.ndarray:
        """Timesteps that DDIM visits, int32 [num_inference_steps], falling: each (1000 // steps)-th, plus
        `steps_offset`; or "trailing" ones, which begin at the last timestep of training.

        Raises UserError where the number is not 1 or more, or the first timestep would be past the last one
        of training.
        """
        steps = num_inference_steps
        if not 1 <= steps <= self.num_train_timesteps:
            raise UserError(f"num_inference_steps={steps} is not between 1 and {self.num_train_timesteps}")
        if timestep_spacing == "trailing":
            return self.trailing_timesteps(steps).astype(np.int32)
        spacing = self.num_train_timesteps // steps
        visited = np.arange(steps - 1, -1, -1) * spacing + self.steps_offset
        if visited[0] >= self.num_train_timesteps:
            largest = (self.num_train_timesteps - 1 - self.steps_offset) // spacing + 1
            raise UserError(
                f"num_inference_steps={steps} would begin at timestep {visited[0]}; use at most {largest}"
            )
        return visited.astype(np.int32)

    def trailing_timesteps(self, num_inference_steps: int) -> np.ndarray:
        """The last timestep of training, and each (1000 / steps)-th below it (Lin et al. 2023, table 2)."""
        falling = 1 - np.arange(num_inference_steps) / num_inference_steps
        return (self.num_train_timesteps * falling).round() - 1

    def check_start(self, t: np.ndarray) -> None:
        """Raise UserError where a model that predicts noise would be called at a timestep that is noise
        alone, from which its prediction gives no latents."""
        if self.prediction_type == "epsilon" and not np.all(self.alphas_cumprod()[t]):
            raise UserError(
                f"num_inference_steps={len(t)} starts at timestep {t[0]}, which this scheduler "
                "config (rescale_betas_zero_snr) makes noise alone: a model that predicts noise cannot start "
                "there; take another number of steps or timestep_spacing=leading, or set prediction_type"
            )


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
    """What a model learns to predict at x_t: the noise, or v or x_0 where the schedule says so
    (`predict_x0_eps`)."""
    if schedule.prediction_type == "epsilon":
        return noise
    if schedule.prediction_type == "sample":
        return x0
    alpha = jnp.asarray(schedule.alphas_cumprod())[t][:, None, None, None, None]
    return jnp.sqrt(alpha) * noise - jnp.sqrt(1 - alpha) * x0


def predict_x0_eps(
    prediction: Latents, z: Latents, alpha: Float[Array, ""], prediction_type: str
) -> tuple[Latents, Latents]:
    """The clean latents and the noise that a prediction at x_t = `z` stands for.

    Epsilon: x_0 = (x_t - sqrt(1 - alpha) eps) / sqrt(alpha) (DDIM, eq. 9).
    v = sqrt(alpha) eps - sqrt(1 - alpha) x_0 (Salimans and Ho 2022, section 4). Sample: x_0 itself.
    """
    signal, noise = jnp.sqrt(alpha), jnp.sqrt(1 - alpha)
    if prediction_type == "v_prediction":
        return signal * z - noise * prediction, signal * prediction + noise * z
    if prediction_type == "sample":
        return prediction, (z - signal * prediction) / noise
    return (z - noise * prediction) / signal, prediction
