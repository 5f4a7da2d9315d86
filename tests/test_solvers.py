"""Multistep solvers against diffusers' PyTorch schedulers, on any smooth function in place of a model."""

import itertools
from typing import Any

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from fyp_jax.diffusion import solvers
from fyp_jax.diffusion.config import TIMESTEP_SPACINGS
from fyp_jax.diffusion.schedule import ScheduleConfig
from fyp_jax.errors import UserError

SHAPE = (1, 2, 4, 4, 3)
SETTINGS: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
THEIRS = {
    "ddim": "DDIMScheduler",
    "dpm++2m": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of diffusers' use of numpy


def noise() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(SHAPE, np.float32)


def model(z: Any, t: int) -> np.ndarray:
    z = np.asarray(z, np.float32)
    return np.float32(0.3) * z + np.float32(0.5) * np.sin(z + np.float32(t / 100))


def their_sample(scheduler: Any, steps: int) -> tuple[list[int], np.ndarray]:
    scheduler.set_timesteps(steps)
    z = torch.from_numpy(noise())
    for t in scheduler.timesteps:
        z = scheduler.step(torch.from_numpy(model(z, int(t))), t, z).prev_sample
    return scheduler.timesteps.tolist(), z.numpy()


def our_sample(schedule: ScheduleConfig, steps: int, solver: str, spacing: str | None = None) -> np.ndarray:
    """The host calls each step with a model of NumPy, as it calls theirs."""
    solver_schedule = solvers.make_solver_schedule(schedule, steps, solver, spacing)
    z = jnp.asarray(noise())
    history = solvers.init_history(z, solver)
    for index in range(steps):
        denoise = lambda z, t: jnp.asarray(model(z, int(t)))  # noqa: E731
        z, history = solvers.step(denoise, z, history, index, solver_schedule, schedule)
    return np.asarray(z)


def compare(solver: str, steps: int, spacing: str, **settings: Any) -> None:
    ddim = {"clip_sample": False, "set_alpha_to_one": False} if solver == "ddim" else {}
    scheduler = getattr(diffusers, THEIRS[solver])(timestep_spacing=spacing, **SETTINGS, **ddim, **settings)
    schedule = ScheduleConfig.from_json(dict(scheduler.config))
    timesteps, expected = their_sample(scheduler, steps)
    assert solvers.make_solver_schedule(schedule, steps, solver, spacing).t.tolist() == timesteps
    np.testing.assert_allclose(our_sample(schedule, steps, solver, spacing), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("solver", ["dpm++2m", "unipc"])
@pytest.mark.parametrize("spacing", ["linspace", "leading", "trailing"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_sampling_equals_diffusers_in_all_spacings(solver: str, spacing: str, kind: str):
    for steps in (1, 2, 5, 20):
        compare(solver, steps, spacing, prediction_type=kind, steps_offset=1)


@pytest.mark.parametrize("solver", ["dpm++2m", "unipc"])
@pytest.mark.parametrize("steps", [4, 14, 15, 30])
def test_last_step_to_sigma_min_equals_diffusers(solver: str, steps: int):
    """From 15 steps on, DPM-Solver++ makes that step in second order."""
    for spacing in ("linspace", "leading"):
        compare(solver, steps, spacing, final_sigmas_type="sigma_min", prediction_type="v_prediction")


@pytest.mark.parametrize("solver", ["dpm++2m", "unipc"])
def test_start_from_noise_alone_equals_diffusers_for_v_and_is_refused_for_noise(solver: str):
    zero_snr: dict[str, Any] = {"rescale_betas_zero_snr": True}
    for spacing, steps in itertools.product(("linspace", "trailing"), (3, 20)):
        compare(solver, steps, spacing, prediction_type="v_prediction", **zero_snr)
    epsilon = ScheduleConfig(**zero_snr)
    with pytest.raises(UserError, match="starts at timestep 999, .* timestep_spacing=leading"):
        solvers.make_solver_schedule(epsilon, 20, solver)
    assert np.all(np.isfinite(our_sample(epsilon, 20, solver, "leading")))


@pytest.mark.parametrize("steps", [1, 4, 20])
def test_ddim_with_trailing_timesteps_equals_diffusers(steps: int):
    for kind in ("epsilon", "v_prediction"):
        compare("ddim", steps, "trailing", prediction_type=kind)


def test_default_spacings_are_those_of_diffusers():
    for solver, scheduler in THEIRS.items():
        assert TIMESTEP_SPACINGS[solver][0] == getattr(diffusers, scheduler)().config.timestep_spacing


@pytest.mark.parametrize("solver", ["dpm++2m", "unipc"])
def test_twice_the_steps_leave_less_than_half_of_the_error_and_less_than_ddim(solver: str):
    """A model that is smooth in lambda: eps = sin(lambda), with the exact path from very many steps."""
    schedule = ScheduleConfig()
    root = np.sqrt(schedule.alphas_cumprod())

    def path(steps: int, name: str) -> np.ndarray:
        solver_schedule = solvers.make_solver_schedule(schedule, steps, name, TIMESTEP_SPACINGS[name][-1])
        z = jnp.asarray(noise())
        history = solvers.init_history(z, name)
        denoise = lambda z, t: 0.5 * jnp.sin(3 * jnp.asarray(root)[t]) + 0.2 * jnp.tanh(z)  # noqa: E731
        step = jax.jit(lambda z, h, i: solvers.step(denoise, z, h, i, solver_schedule, schedule))
        for index in range(steps):
            z, history = step(z, history, index)
        return np.asarray(z)

    exact = path(500, solver)
    errors = {steps: np.abs(path(steps, solver) - exact).max() for steps in (10, 20)}
    assert errors[20] < 0.45 * errors[10]
    assert errors[10] < 0.5 * np.abs(path(10, "ddim") - exact).max()


@pytest.mark.parametrize("solver", ["dpm++2m", "unipc"])
@pytest.mark.parametrize(
    ("steps", "spacing", "message"),
    [
        (0, "linspace", "num_inference_steps=0 is not between 1 and 1000"),
        (0, "trailing", "num_inference_steps=0 is not between 1 and 1000"),
        (1000, "leading", "=1000: the 1000 timesteps of training have no so many leading ones; take fewer"),
        (1000, "linspace", "have no so many linspace ones"),
        (1001, "trailing", "num_inference_steps=1001 is not between 1 and 1000"),
    ],
)
def test_number_of_steps_without_timesteps_is_refused(solver: str, steps: int, spacing: str, message: str):
    with pytest.raises(UserError, match=message):
        solvers.make_solver_schedule(ScheduleConfig(), steps, solver, spacing)


def test_coefficients_are_finite_for_any_number_of_steps():
    for solver, spacings in TIMESTEP_SPACINGS.items():
        for spacing in spacings:
            for steps, last in itertools.product((1, 2, 3, 49, 250, 499), ("zero", "sigma_min")):
                schedule = ScheduleConfig(final_sigmas_type=last)
                found = solvers.make_solver_schedule(schedule, steps, solver, spacing)
                assert len(found.t) == steps
                assert all(np.all(np.isfinite(x)) for x in found if x is not None)
