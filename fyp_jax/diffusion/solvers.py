"""One step of any solver, over any `denoise(z, t)`: DDIM, DPM-Solver++(2M) or UniPC."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from fyp_jax.diffusion import ddim, multistep
from fyp_jax.diffusion.config import TIMESTEP_SPACINGS
from fyp_jax.diffusion.ddim import DDIMSchedule
from fyp_jax.diffusion.multistep import History, MultistepSchedule
from fyp_jax.diffusion.schedule import ScheduleConfig
from fyp_jax.types import DenoiseFn, Latents

SolverSchedule = DDIMSchedule | MultistepSchedule


def make_solver_schedule(
    schedule: ScheduleConfig,
    num_inference_steps: int,
    solver: str = "ddim",
    timestep_spacing: str | None = None,
) -> SolverSchedule:
    """The steps of a solver of TIMESTEP_SPACINGS; None is its default spacing.

    Raises UserError where the schedule has no such timesteps, or a model that predicts noise cannot start
    there.
    """
    spacing = timestep_spacing or TIMESTEP_SPACINGS[solver][0]
    if solver == "ddim":
        return ddim.make_ddim_schedule(schedule, num_inference_steps, spacing)
    return multistep.make_multistep_schedule(schedule, solver, num_inference_steps, spacing)


def reverse(solver_schedule: SolverSchedule) -> DDIMSchedule:
    """The steps of DDIM inversion. Raises ValueError for a multistep solver, which has no inversion."""
    if not isinstance(solver_schedule, DDIMSchedule):
        raise ValueError("only the steps of DDIM can be reversed")
    return ddim.reverse(solver_schedule)


def init_history(z: Float[Array, "*clips b f h w c"], solver: str) -> tuple[Any, ...]:
    """The history before the first step: as many arrays of zeros as the solver keeps, none for DDIM.

    Latents of a batch of clips have an axis of clips in front, and so has their history.
    """
    return tuple(jnp.zeros_like(z) for _ in range(history_length(solver)))


def history_length(solver: str) -> int:
    """The number of arrays, each of the size of the latents, that a solver keeps from step to step."""
    return multistep.HISTORY_LENGTHS.get(solver, 0)


def step(
    denoise: DenoiseFn,
    z: Latents,
    history: History,
    step_index: Int[Array | np.ndarray, ""] | int,
    solver_schedule: SolverSchedule,
    schedule: ScheduleConfig,
    eta: float = 0.0,
    key: jax.Array | None = None,
) -> tuple[Latents, History]:
    """Latents and history after step `step_index`, counted from 0. `eta` and `key` are DDIM's
    (`ddim.step`)."""
    if isinstance(solver_schedule, DDIMSchedule):
        return ddim.step(denoise, z, step_index, solver_schedule, schedule, eta, key), history
    return multistep.step(denoise, z, history, step_index, solver_schedule, schedule)
