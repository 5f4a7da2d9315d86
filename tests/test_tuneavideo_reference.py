"""The published Tune-A-Video on synthetic weights: noise, inversion, sampling, and three steps of training.

The fixture has a part of its outputs: of the latents of inversion and sampling those behind the first and
behind the last step.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

import tiny_models
from conftest import FIXTURES, Reference, channels_last, tagged
from fyp_jax.convert.torch_key_mapping import tuneavideo_to_torch
from fyp_jax.diffusion import ddim
from fyp_jax.diffusion.schedule import ScheduleConfig
from fyp_jax.models.unet import UNet3D
from fyp_jax.pipeline.guidance import cfg_denoiser
from fyp_jax.training.config import OptimizerConfig
from fyp_jax.training.losses import Models, NoiseSample, diffusion_loss
from fyp_jax.training.optimizer import make_optimizer
from fyp_jax.training.stages import STAGES

TIMESTEP, TRAIN_TIMESTEPS, STEPS, GUIDANCE = 501, (501, 42, 837), 5, 12.5
LATENTS, TEXT = (1, 4, 3, 8, 8), (1, 7, 32)
TEMPORAL_OUT = "attn_temp/to_out_0/"


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    with np.load(FIXTURES / "tuneavideo_reference.npz") as found:
        return dict(found)


@pytest.fixture(scope="module")
def params(reference: Reference) -> dict[str, Any]:
    """The reference's UNet by path, with temporal convolutions that are the identity."""
    flat: dict[str, Any] = flatten_dict({"unet": reference.params["unet"]}, sep="/")
    return {path: 0 * x if path.endswith("conv_temporal/up/kernel") else x for path, x in flat.items()}


def assert_close(ours: Any, theirs: np.ndarray, tolerance: float = 1e-4) -> None:
    error = np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()
    assert error < tolerance, f"relative error {error:.1e}"


def latents(tag: str) -> jax.Array:
    return jnp.asarray(channels_last(tagged(f"tav/{tag}", LATENTS)))


def noise(reference: Reference, params: dict[str, Any]) -> jax.Array:
    unet = unflatten_dict(params, sep="/")["unet"]
    text = jnp.asarray(tagged("tav/text", TEXT))
    return _apply(reference, unet, latents("sample"), jnp.array([TIMESTEP]), text)


def _apply(reference: Reference, unet: Any, z: jax.Array, t: jax.Array, text: jax.Array) -> jax.Array:
    return jax.jit(UNet3D(reference.config).apply)({"params": unet}, z, t, text)  # pyright: ignore


def test_one_shot_stage_trains_what_the_published_code_trains(
    arrays: dict[str, np.ndarray], params: dict[str, Any]
):
    trained = STAGES["one_shot"].trains(params)
    marks = {path.removeprefix("unet/"): np.full_like(x, trained[path]) for path, x in params.items()}
    marked = tuneavideo_to_torch(unflatten_dict(marks, sep="/"))
    assert {name for name, x in marked.items() if x.all()} == set(arrays["trainable_names"].tolist())
    assert sum(trained.values()) == len(arrays["trainable_names"]) == 112


@pytest.mark.release
def test_noise_predictions_equal_the_published_ones(
    reference: Reference, arrays: dict[str, np.ndarray], params: dict[str, Any]
):
    """Also as training begins, with a temporal output of 0, and with its bias at 0 too."""
    for name, zero in (
        ("eps", ()),
        ("eps_zero_weight", ("kernel",)),
        ("eps_zero_weight_and_bias", ("kernel", "bias")),
    ):
        ends = tuple(TEMPORAL_OUT + kind for kind in zero)
        changed = {path: 0 * x if ends and path.endswith(ends) else x for path, x in params.items()}
        assert_close(noise(reference, changed), channels_last(arrays[name]), 1e-5)


@pytest.mark.slow
def test_inversion_and_sampling_equal_the_published_ones(
    reference: Reference, arrays: dict[str, np.ndarray], params: dict[str, Any]
):
    unet, schedule = unflatten_dict(params, sep="/")["unet"], ScheduleConfig()
    text, uncond = (jnp.asarray(tagged(f"tav/{name}", TEXT)) for name in ("text", "uncond"))
    assert sorted(schedule.timesteps(STEPS)) == sorted(arrays["inversion_timesteps"])

    def denoise(z: jax.Array, t: jax.Array) -> jax.Array:
        return UNet3D(reference.config).apply({"params": unet}, z, t[None], uncond)  # pyright: ignore

    guided = cfg_denoiser(UNet3D(reference.config), unet, text, uncond, None, GUIDANCE)
    forward = ddim.make_ddim_schedule(schedule, STEPS)
    noisy = jnp.asarray(channels_last(arrays["inversion_latents"][1]))
    for name, function, steps, z in (
        ("inversion_latents", denoise, ddim.reverse(forward), 0.5 * latents("sample")),
        ("sampling_latents", guided, forward, noisy),
    ):
        step = jax.jit(lambda z, i, f=function, s=steps: ddim.step(f, z, i, s, schedule))
        behind = []
        for index in range(STEPS):
            z = step(z, index)
            behind.append(z)
        assert_close(behind[0], channels_last(arrays[name][0]))
        assert_close(behind[-1], channels_last(arrays[name][1]))


@pytest.fixture(scope="module")
def trained(reference: Reference, params: dict[str, Any]) -> dict[str, Any]:
    """Losses, gradients and parameters of three steps of the stage, by our loss and optimizer."""
    chosen = STAGES["one_shot"].trains(params)
    parts = [{p: jnp.asarray(x) for p, x in params.items() if chosen[p] is k} for k in (True, False)]
    trainable, frozen = parts
    models = Models(tiny_models.encoders(), ScheduleConfig(), UNet3D(reference.config), None)
    text = jnp.asarray(tagged("tav/text", TEXT))

    @jax.jit
    def loss(trainable: dict, z: jax.Array, t: jax.Array) -> jax.Array:
        tree = unflatten_dict(trainable | frozen, sep="/")
        sample = NoiseSample(t[None], z, z)
        return diffusion_loss(models, tree, latents("sample"), sample, text, None)[0]

    value_and_grad = jax.jit(jax.value_and_grad(loss))
    noises = [latents(f"noise{i}") for i in range(len(TRAIN_TIMESTEPS))]
    steps = list(zip(noises, map(jnp.asarray, TRAIN_TIMESTEPS), strict=True))
    optimizer = make_optimizer(OptimizerConfig(), num_train_steps=len(steps))
    state, begin, losses, gradients = optimizer.init(trainable), trainable, [], []
    for z, t in steps:
        value, gradient = value_and_grad(trainable, z, t)
        updates, state = optimizer.update(gradient, state, trainable)
        trainable = optax.apply_updates(trainable, updates)
        losses.append(value)
        gradients.append(gradient)
    after = [loss(trainable, z, t) for z, t in steps]
    return {
        "losses": losses,
        "losses_after": after,
        "gradients": gradients,
        "update": jax.tree.map(jnp.subtract, trainable, begin),
        "params": trainable | frozen,
        "frozen": frozen,
    }


def norms(arrays: dict[str, np.ndarray], trained: dict[str, Any], tree: dict[str, Any]) -> list[float]:
    """The norm of each trained array, in the published order of names."""
    flat = tree | {path: np.zeros_like(x) for path, x in trained["frozen"].items()}
    named = tuneavideo_to_torch(unflatten_dict(flat, sep="/")["unet"])
    return [float(np.linalg.norm(named[name])) for name in arrays["trainable_names"].tolist()]


@pytest.mark.slow
def test_three_training_steps_equal_the_published_ones(
    reference: Reference, arrays: dict[str, np.ndarray], trained: dict[str, Any]
):
    for name in ("losses", "losses_after"):
        np.testing.assert_allclose(trained[name], arrays[name], rtol=1e-4, err_msg=name)
    grad_norms = [optax.tree.norm(gradient) for gradient in trained["gradients"]]
    np.testing.assert_allclose(grad_norms, arrays["grad_norms"], rtol=1e-4)
    gradient, update = (
        norms(arrays, trained, trained["gradients"][0]),
        norms(arrays, trained, trained["update"]),
    )
    np.testing.assert_allclose(gradient, arrays["grad_l2_per_param"], rtol=1e-4, atol=1e-7)
    # Adam divides small gradients by their own size, so that their rounding becomes part of the update.
    np.testing.assert_allclose(update, arrays["update_l2_per_param"], rtol=1e-3)
    assert_close(noise(reference, trained["params"]), channels_last(arrays["eps_after_training"]))
