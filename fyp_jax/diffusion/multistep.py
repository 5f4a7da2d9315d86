"""DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2) and UniPC-2 (Zhao et al. 2023, B(h)
version).

Both are multistep solvers of second order: a step uses the x_0 that the model predicted one step earlier.
Their predictors are the same. UniPC also corrects the latents of a step once the model has seen them, at no
further call of the model. All coefficients depend on the timesteps alone, so they are computed before the
sampling, in float64.

Notation is that of the papers, with the schedule's alpha under a root: signal = sqrt(alpha), noise = sqrt(1 -
alpha), lambda = log(signal / noise), and h is the increase of lambda in a step. Choices that the papers leave
open are the defaults of diffusers' `DPMSolverMultistepScheduler` and `UniPCMultistepScheduler`.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fyp_jax.diffusion.schedule import ScheduleConfig, predict_x0_eps
from fyp_jax.errors import UserError
from fyp_jax.types import DenoiseFn, Latents

MIN_ALPHA = 2.0**-24
"""The alpha of a timestep that is noise alone: lambda has to be finite."""

LOWER_ORDER_STEPS = 15
"""With fewer steps than these the last step is of first order (diffusers' `lower_order_final`)."""

History = tuple[Latents, ...]
"""What a solver keeps of earlier steps. DPM-Solver++: the last x_0. UniPC: the last corrected latents, and
the last two x_0."""

HISTORY_LENGTHS = {"dpm++2m": 1, "unipc": 3}


class MultistepSchedule(NamedTuple):
    """Coefficients of each step; at each the model is called at timestep `t`."""

    t: Int[Array, "*steps"]
    alpha: Float[Array, "*steps"]
    """alphas_cumprod of the latents before the step."""
    predictor: Float[Array, "*steps 3"]
    """Factors of the latents, of x_0 and of the x_0 before; their sum is the latents after the step."""
    corrector: Float[Array, "*steps 5"] | None
    """Factors of the latents, of the three arrays of the history, and of x_0; their sum is what the predictor
    takes as latents. None: these are not corrected."""


def make_multistep_schedule(
    schedule: ScheduleConfig, solver: str, num_inference_steps: int, timestep_spacing: str
) -> MultistepSchedule:
    """The steps of sampling with a solver of HISTORY_LENGTHS.

    Raises UserError where there are no such timesteps, and where a model that predicts noise would start from
    noise alone.
    """
    t = multistep_timesteps(schedule, num_inference_steps, timestep_spacing)
    alphas_cumprod = schedule.alphas_cumprod()
    schedule.check_start(t)
    to_zero = schedule.final_sigmas_type == "zero"
    levels = np.append(np.maximum(alphas_cumprod[t], MIN_ALPHA), 1 if to_zero else alphas_cumprod[0])
    second = np.arange(num_inference_steps) > 0
    if solver == "unipc" or to_zero or num_inference_steps < LOWER_ORDER_STEPS:
        second[-1] = False
    predictor, corrector = _coefficients(levels.astype(np.float64), second)
    return MultistepSchedule(
        jnp.asarray(t),
        jnp.asarray(levels[:-1], jnp.float32),
        jnp.asarray(predictor, jnp.float32),
        jnp.asarray(corrector, jnp.float32) if solver == "unipc" else None,
    )


def multistep_timesteps(
    schedule: ScheduleConfig, num_inference_steps: int, timestep_spacing: str
) -> Int[np.ndarray, "*steps"]:
    """Timesteps to visit, int32 and falling, as diffusers' multistep schedulers space them (Lin et al. 2023,
    table 2).

    "linspace" and "leading" divide the training timesteps into one part more than there are steps, and leave
    out the lowest. Raises UserError where these are not different timesteps of training.
    """
    steps, last = num_inference_steps, schedule.num_train_timesteps
    if not 1 <= steps <= last:
        raise UserError(f"num_inference_steps={steps} is not between 1 and {last}")
    if timestep_spacing == "trailing":
        visited = schedule.trailing_timesteps(steps)
    elif timestep_spacing == "linspace":
        visited = np.linspace(0, last - 1, steps + 1).round()[:0:-1]
    else:
        visited = np.arange(steps, 0, -1) * (last // (steps + 1)) + schedule.steps_offset
    if visited[0] >= last or np.any(np.diff(visited) >= 0):
        raise UserError(
            f"num_inference_steps={steps}: the {last} timesteps of training have no so many "
            f"{timestep_spacing} ones; take fewer"
        )
    return visited.astype(np.int32)


def step(
    denoise: DenoiseFn,
    z: Latents,
    history: History,
    step_index: Int[Array | np.ndarray, ""] | int,
    multistep_schedule: MultistepSchedule,
    schedule: ScheduleConfig,
) -> tuple[Latents, History]:
    """Latents and history after step `step_index`, counted from 0; before step 0 the history may be zeros."""
    t, alpha, predictor, corrector = (
        None if values is None else values[step_index] for values in multistep_schedule
    )
    x0, _ = predict_x0_eps(denoise(z, t), z, alpha, schedule.prediction_type)  # pyright: ignore
    if corrector is None:
        (x0_before,), kept = history, ()
    else:
        z = _weighted_sum(corrector, (z, *history, x0))
        _, x0_before, _ = history
        kept = (z,)
    after = _weighted_sum(predictor, (z, x0, x0_before))  # pyright: ignore
    return after, (*kept, x0, x0_before)[: len(history)]


def _weighted_sum(weights: Float[Array, " n"], arrays: tuple[Latents, ...]) -> Latents:
    return sum(weights[i] * array for i, array in enumerate(arrays))  # pyright: ignore


def _coefficients(
    levels: Float[np.ndarray, "levels"], second: np.ndarray
) -> tuple[Float[np.ndarray, "steps 3"], Float[np.ndarray, "steps 5"]]:
    """Factors of predictor and corrector, for the alphas before and after each step, and whether a step is of
    second order."""
    signal, noise = np.sqrt(levels), np.sqrt(1 - levels)
    with np.errstate(divide="ignore"):
        lambdas = np.log(signal) - np.log(noise)
    predictor, corrector = np.zeros((len(second), 3)), np.zeros((len(second), 5))
    corrector[0, 0] = 1
    for i, of_second_order in enumerate(second):
        h = lambdas[i + 1] - lambdas[i]
        gain = -signal[i + 1] * np.expm1(-h)
        # Eq. 12 of DPM-Solver++: x_0 is extrapolated from the last two predictions.
        slope = 0.5 * h / (lambdas[i] - lambdas[i - 1]) if of_second_order else 0.0
        predictor[i] = noise[i + 1] / noise[i], gain * (1 + slope), -gain * slope
        if i + 1 == len(second):
            break
        before, now = 0.0, 0.5  # UniC of order 1
        if of_second_order:
            # UniC of order 2: r_1 and the two equations for its weights (UniPC, eq. 5 and appendix), B(h) =
            # e^-h - 1
            r = (lambdas[i - 1] - lambdas[i]) / h
            phi_2 = np.expm1(-h) / -h - 1
            phi_3 = phi_2 / -h - 0.5
            b_1, b_2 = phi_2 / np.expm1(-h), 2 * phi_3 / np.expm1(-h)
            weight = (b_1 - b_2) / (1 - r)
            before, now = weight / r, b_1 - weight
        # Latents before the step, x_0 there and one step earlier, and x_0 after the step.
        corrector[i + 1, 1:] = noise[i + 1] / noise[i], gain * (1 - before - now), gain * before, gain * now
    return predictor, corrector
