"""Scheduler configs of every sampler of diffusers: the noise of training is taken, or refused by name."""

import json
import logging
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest

from fyp_jax.diffusion import ddim
from fyp_jax.diffusion.schedule import ScheduleConfig
from fyp_jax.errors import UserError

SAMPLERS = (
    *("DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LMSDiscreteScheduler", "EulerDiscreteScheduler"),
    *("EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler"),
    *("KDPM2AncestralDiscreteScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"),
    *("UniPCMultistepScheduler", "DEISMultistepScheduler", "LCMScheduler", "TCDScheduler"),
)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of diffusers' use of numpy
STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012}


def saved_config(sampler: str, folder: Path, **settings: Any) -> tuple[Any, dict[str, Any]]:
    """A scheduler of diffusers, and the scheduler_config.json that it writes."""
    scheduler = getattr(diffusers, sampler)(**settings)
    scheduler.save_pretrained(folder)
    return scheduler, json.loads((folder / "scheduler_config.json").read_text())


@pytest.mark.parametrize(
    ("sampler", "betas"),
    [("DDIMScheduler", betas) for betas in ("linear", "squaredcos_cap_v2", "trained_betas")]
    + [(sampler, "scaled_linear") for sampler in SAMPLERS],
)
def test_betas_of_every_sampler_equal_diffusers(sampler: str, betas: str, tmp_path: Path):
    settings: dict[str, Any] = {"beta_schedule": betas, **STABLE_DIFFUSION}
    if betas == "trained_betas":
        settings = {"trained_betas": np.geomspace(1e-4, 2e-2, 500).tolist(), "num_train_timesteps": 500}
    scheduler, values = saved_config(sampler, tmp_path, prediction_type="v_prediction", **settings)
    schedule = ScheduleConfig.from_json(values)
    assert schedule.prediction_type == "v_prediction"
    np.testing.assert_allclose(schedule.alphas_cumprod(), scheduler.alphas_cumprod, rtol=2e-4, atol=1e-9)


RESCALING = [
    sampler for sampler in SAMPLERS if "rescale_betas_zero_snr" in getattr(diffusers, sampler)().config
]


@pytest.mark.parametrize("sampler", RESCALING)
def test_rescaling_to_zero_signal_equals_diffusers(sampler: str, tmp_path: Path):
    scheduler, values = saved_config(
        sampler, tmp_path, beta_schedule="scaled_linear", rescale_betas_zero_snr=True,
        prediction_type="v_prediction", **STABLE_DIFFUSION,
    )  # fmt: skip
    alphas_cumprod = ScheduleConfig.from_json(values).alphas_cumprod()
    # Euler's has a small number in place of the last 0, for its sigmas.
    assert alphas_cumprod[-1] == 0
    np.testing.assert_allclose(alphas_cumprod[:-1], scheduler.alphas_cumprod[:-1], rtol=2e-4, atol=1e-7)


def test_sampler_settings_of_others_are_a_note(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """The model is the same, so spacing and clipping stop nothing."""
    _, values = saved_config(
        "DDIMScheduler",
        tmp_path,
        beta_schedule="scaled_linear",
        timestep_spacing="trailing",
        **STABLE_DIFFUSION,
    )
    with caplog.at_level(logging.WARNING):
        assert ScheduleConfig.from_json(values) == ScheduleConfig(set_alpha_to_one=True, steps_offset=0)
    (message,) = [record.getMessage() for record in caplog.records]
    assert "timestep_spacing='trailing' clip_sample=True are not used" in message


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
            "FlowMatchEulerDiscrete.* no noise",
        ),
        ({"_class_name": "EDMEulerScheduler", "sigma_data": 0.5}, "EDMEulerScheduler without beta_schedule"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule='sigmoid' is not supported"),
        ({"prediction_type": "flow"}, "prediction_type='flow' is not supported"),
        ({"trained_betas": [0.1, 0.2]}, "2 trained_betas for 1000 timesteps"),
        ({"trained_betas": "all"}, "trained_betas is not a list"),
        ({"trained_betas": [0.1, "x"]}, "trained_betas is not a list of numbers"),
        ({"beta_end": 12}, "not all between 0 and 1"),
        ({"beta_start": float("nan")}, "not all between 0 and 1"),
        ({"num_train_timesteps": 0}, "make no timesteps"),
        ({"num_train_timesteps": 10**12}, "make no timesteps"),
        ({"num_train_timesteps": "1000"}, "num_train_timesteps='1000' is not a int"),
        ({"rescale_betas_zero_snr": "yes"}, "rescale_betas_zero_snr='yes' is not a bool"),
    ],
)
def test_config_without_usable_betas_is_refused(values: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        ScheduleConfig.from_json(values)


def test_noise_prediction_cannot_start_from_noise_alone():
    """500 steps start at timestep 999, 50 steps at 981."""
    schedule = ScheduleConfig(rescale_betas_zero_snr=True)
    assert np.all(np.isfinite(ddim.make_ddim_schedule(schedule, 50).alpha))
    with pytest.raises(UserError, match="num_inference_steps=500 starts at timestep 999"):
        ddim.make_ddim_schedule(schedule, 500)
    v = ScheduleConfig(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    assert ddim.make_ddim_schedule(v, 500).alpha[0] == 0
