"""One step of the published motion stage on synthetic weights, against this package."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from conftest import Reference, channels_last, tagged
from fyp_jax.convert.pipeline_folder import PipelineFolder
from fyp_jax.convert.torch_key_mapping import to_torch
from fyp_jax.diffusion.schedule import ScheduleConfig
from fyp_jax.models.unet import UNet3D
from fyp_jax.training.config import OptimizerConfig
from fyp_jax.training.losses import Models, NoiseSample, diffusion_loss
from fyp_jax.training.optimizer import make_optimizer
from fyp_jax.training.stages import STAGES

STEPS = 100


@pytest.fixture(scope="module")
def parts(reference: Reference) -> tuple[dict[str, Any], dict[str, Any]]:
    """Trainable and frozen parameters of the motion stage, by path."""
    params = flatten_dict(reference.params, sep="/")
    trained = STAGES["motion"].trains([*params, "vae/x", "text_encoder/x"])
    return tuple(
        {path: jnp.asarray(x) for path, x in params.items() if trained[path] is k} for k in (True, False)
    )


def loss(reference: Reference, trainable: dict[str, Any], frozen: dict[str, Any]) -> jax.Array:
    latent_encoders = PipelineFolder(
        "mini", parts=()
    ).latent_encoders()  # not asked: latents and text are given
    models = Models(latent_encoders, ScheduleConfig(), UNet3D(reference.config), None)
    noise = jnp.asarray(channels_last(tagged("small/noise", (1, 4, 3, 8, 8))))
    noise_sample = NoiseSample(jnp.array([501]), noise, noise)
    params = unflatten_dict(trainable | frozen, sep="/")
    return diffusion_loss(models, params, reference.latents, noise_sample, reference.text, None)[0]


@pytest.fixture(scope="module")
def gradient(reference: Reference, parts: tuple[dict, dict]) -> tuple[jax.Array, dict[str, jax.Array]]:
    return jax.jit(jax.value_and_grad(functools.partial(loss, reference)))(*parts)


def torch_names(
    reference: Reference, trainable: dict[str, Any], frozen: dict[str, Any]
) -> dict[str, np.ndarray]:
    return to_torch(unflatten_dict(trainable | frozen, sep="/"))


def test_motion_stage_trains_the_parameters_that_the_published_code_trains(
    reference: Reference, parts: tuple[dict, dict]
):
    trainable, frozen = parts
    marked = torch_names(
        reference,
        {path: np.ones_like(x) for path, x in trainable.items()},
        {path: np.zeros_like(x) for path, x in frozen.items()},
    )
    ours = {name for name, mark in marked.items() if mark.all()}
    assert ours == set(reference.arrays["trainable_names"].tolist())
    assert len(trainable) == len(ours) == 144


@pytest.mark.slow
def test_loss_and_gradient_norm_equal_the_published_ones(reference: Reference, gradient: tuple):
    np.testing.assert_allclose(gradient[0], reference.arrays["loss"], rtol=1e-5)
    np.testing.assert_allclose(optax.tree.norm(gradient[1]), reference.arrays["grad_norm"], rtol=1e-5)


@pytest.mark.slow
def test_norm_of_each_clipped_gradient_equals_the_published_one(
    reference: Reference, gradient: tuple, parts: tuple[dict, dict]
):
    clipped = optax.clip_by_global_norm(1.0).update(gradient[1], optax.EmptyState())[0]
    named = torch_names(reference, clipped, {path: np.zeros_like(x) for path, x in parts[1].items()})
    ours = [np.linalg.norm(named[name]) for name in reference.arrays["trainable_names"].tolist()]
    np.testing.assert_allclose(ours, reference.arrays["grad_l2_per_param_clipped"], rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_loss_after_one_update_equals_the_published_one(
    reference: Reference, gradient: tuple, parts: tuple[dict, dict]
):
    optimizer = make_optimizer(OptimizerConfig(), STEPS)
    updates, _ = optimizer.update(gradient[1], optimizer.init(parts[0]), parts[0])
    after = jax.jit(functools.partial(loss, reference))(optax.apply_updates(parts[0], updates), parts[1])
    np.testing.assert_allclose(after, reference.arrays["loss_after_adamw"], rtol=1e-5)
    assert abs(after - gradient[0]) > 1e-4, "the update changes the loss by more than the tolerance"
