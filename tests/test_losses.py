"""Weights of the losses: signal-to-noise ratios, edges, and the divergence of latents."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from flax.traverse_util import unflatten_dict

import tiny_models
from fyp_jax.diffusion.schedule import ScheduleConfig
from fyp_jax.errors import UserError
from fyp_jax.models.execution import ExecutionConfig
from fyp_jax.training.config import LossConfig
from fyp_jax.training.losses import NoiseSample, autoencoder_loss, snr_weight
from fyp_jax.types import Batch


@pytest.mark.parametrize("gamma", [1.0, 5.0])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_snr_weight_equals_that_of_diffusers_training_scripts(gamma: float, prediction_type: str):
    schedule = ScheduleConfig(prediction_type=prediction_type)
    scheduler = DDPMScheduler(
        beta_start=schedule.beta_start, beta_end=schedule.beta_end, beta_schedule=schedule.beta_schedule
    )
    t = np.array([0, 1, 250, 700, 999])
    snr = compute_snr(scheduler, torch.from_numpy(t)).double()
    expected = snr.clamp(max=gamma) / (snr + 1 if prediction_type == "v_prediction" else snr)
    np.testing.assert_allclose(snr_weight(jnp.asarray(t), schedule, gamma), expected, rtol=1e-4)


@pytest.mark.parametrize(
    "field", ["min_snr_gamma=-1.0", "min_snr_gamma=0.0", "edge_weight=-0.1", "kl_weight=inf"]
)
def test_weight_out_of_range_is_refused(field: str):
    name, value = field.split("=")
    with pytest.raises(UserError, match=f"loss.{name}={value} is out of range"):
        dataclasses.replace(LossConfig(), **{name: float(value)}).check()


@pytest.mark.slow
def test_edge_weight_adds_the_error_of_differences_between_neighbouring_pixels():
    rng = np.random.default_rng(0)
    models = tiny_models.models("autoencoder", ExecutionConfig())
    params = {"vae": unflatten_dict(tiny_models.params(models), sep="/")["vae"]}
    video = rng.uniform(-1, 1, (2, 1, 16, 16, 3)).astype(np.float32)
    latents = models.encoders.posterior(params, jnp.asarray(video))[0].shape
    noise = NoiseSample(jnp.zeros(2, int), jnp.zeros(latents), jnp.zeros(latents))
    batch = Batch(video, np.zeros((2, 77), np.int32), None)

    def loss(**options: float) -> np.ndarray:
        chosen = dataclasses.replace(models, loss=LossConfig(kl_weight=0.0, **options))
        return np.asarray(autoencoder_loss(chosen, params, batch, noise))

    mean = models.encoders.posterior(params, jnp.asarray(video))[0] * models.encoders.spec.scaling_factor
    error = np.asarray(models.encoders.decode_latents(params, mean, chunk=2)) - video
    differences = np.abs(error[:, 0, 1:] - error[:, 0, :-1]).mean((1, 2, 3))
    differences += np.abs(error[:, 0, :, 1:] - error[:, 0, :, :-1]).mean((1, 2, 3))
    np.testing.assert_allclose(loss(edge_weight=3.0) - loss(), 3 * differences, rtol=1e-4)
