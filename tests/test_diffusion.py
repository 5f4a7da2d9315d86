"""DDIM against its equations and against diffusers' PyTorch schedulers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fyp_jax.diffusion import ddim
from fyp_jax.diffusion.schedule import ScheduleConfig, add_noise, predict_x0_eps, prediction_target
from fyp_jax.errors import UserError

SHAPE = (1, 2, 4, 4, 3)
SCHEDULE = ScheduleConfig()


def normal(seed: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), SHAPE)


def smooth_model(z: jax.Array, t: jax.Array) -> jax.Array:
    """Stands for a model: any smooth function of latents and timestep will do."""
    return 0.3 * z + 0.1 * jnp.sin(z + t / 100.0)


@pytest.mark.parametrize("steps", [1, 5, 50])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("to_one", [False, True])
def test_sampling_equals_diffusers_ddim(steps: int, kind: str, to_one: bool):
    torch = pytest.importorskip("torch")
    from diffusers import DDIMScheduler

    settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    scheduler = DDIMScheduler(**settings, clip_sample=False, set_alpha_to_one=to_one, prediction_type=kind)
    scheduler.set_timesteps(steps)
    z = torch.tensor(np.asarray(normal(0)))
    for t in scheduler.timesteps:
        model = torch.tensor(np.asarray(smooth_model(jnp.asarray(z.numpy()), jnp.int32(int(t)))))
        z = scheduler.step(model, t, z).prev_sample
    schedule = ScheduleConfig.from_json(dict(scheduler.config))
    assert schedule.prediction_type == kind
    ours = ddim.sample(smooth_model, normal(0), steps, schedule)
    np.testing.assert_allclose(ours, z.numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_sampling_with_a_perfect_model_finds_the_clip(kind: str, eta: float):
    """If the model knows z_0, every path ends there (up to the noise left at training timestep 0)."""
    z0 = normal(0)
    schedule = ScheduleConfig(prediction_type=kind, set_alpha_to_one=True)
    alphas_cumprod = jnp.asarray(schedule.alphas_cumprod())

    def knows(z: jax.Array, t: jax.Array) -> jax.Array:
        signal, noise = jnp.sqrt(alphas_cumprod[t]), jnp.sqrt(1 - alphas_cumprod[t])
        eps = (z - signal * z0) / noise
        return {"epsilon": eps, "v_prediction": signal * eps - noise * z0, "sample": z0}[kind]

    found = ddim.sample(knows, normal(1), 20, schedule, eta, jax.random.key(2))
    np.testing.assert_allclose(found, z0, atol=1e-3)


def test_sampling_after_inversion_gives_the_latents_back():
    """Inversion is exact in the limit of many steps; with 500 the error is within a percent."""
    z0 = normal(0)
    noise = ddim.invert(smooth_model, z0, 500, SCHEDULE)
    back = ddim.sample(smooth_model, noise, 500, SCHEDULE)
    assert jnp.abs(noise - z0).max() > 0.1
    assert jnp.abs(back - z0).max() < 0.01 * jnp.abs(z0).max() + 0.01


def test_inversion_from_clean_latents_is_undone_by_the_same_denoiser_alone():
    """With `set_alpha_to_one` the lowest level has no noise at all: nothing is divided by it."""
    schedule = ScheduleConfig(set_alpha_to_one=True)
    z0, eps = normal(0), normal(1)
    # Inversion is exact for a constant prediction; for a linear one in the limit of many steps.
    for denoise, steps, tolerance in (
        (lambda z, t: eps, 5, 1e-4),
        (lambda z, t: 0.1 * z, 500, 0.01),
    ):
        noise = ddim.invert(denoise, z0, steps, schedule)
        assert jnp.abs(noise - z0).max() > 0.1
        np.testing.assert_allclose(ddim.sample(denoise, noise, steps, schedule), z0, atol=tolerance)
        other = ddim.sample(lambda z, t: -0.5 * z, noise, steps, schedule)
        assert jnp.abs(other - z0).max() > 0.5


def test_noise_of_eta_1_has_the_sigma_of_equation_16():
    """With eta 1 and a model that predicts no noise, one step leaves noise of this standard deviation."""
    steps = ddim.make_ddim_schedule(SCHEDULE, 1)
    shape = (1, 8, 32, 32, 4)
    z = ddim.sample(lambda z, t: jnp.zeros_like(z), jnp.zeros(shape), 1, SCHEDULE, 1.0, jax.random.key(0))
    sigma2 = (1 - steps.alpha_next) / (1 - steps.alpha) * (1 - steps.alpha / steps.alpha_next)
    assert float(z.std()) == pytest.approx(float(sigma2[0] ** 0.5), rel=0.02)


def test_sampling_with_eta_depends_on_the_key_and_needs_one():
    once, again, other = (
        ddim.sample(smooth_model, normal(0), 3, SCHEDULE, 0.5, jax.random.key(k)) for k in (0, 0, 1)
    )
    np.testing.assert_array_equal(once, again)
    assert jnp.abs(once - other).max() > 1e-3
    with pytest.raises(ValueError, match="eta=0.5"):
        ddim.sample(smooth_model, normal(0), 3, SCHEDULE, 0.5)


def test_single_steps_equal_the_scan():
    steps, key = ddim.make_ddim_schedule(SCHEDULE, 7), jax.random.key(0)
    z = normal(0)
    for index in range(7):
        z = ddim.step(smooth_model, z, index, steps, SCHEDULE, 0.5, key)
    np.testing.assert_allclose(z, ddim.sample(smooth_model, normal(0), 7, SCHEDULE, 0.5, key), atol=1e-5)


def test_program_of_more_steps_is_not_longer():
    """The loop is one scan."""
    sizes = [
        len(jax.jit(lambda z, n=n: ddim.sample(smooth_model, z, n, SCHEDULE)).lower(normal(0)).as_text())
        for n in (5, 50)
    ]
    assert sizes[1] < 1.5 * sizes[0]


def test_schedule_has_the_noise_levels_of_stable_diffusion():
    alphas_cumprod = SCHEDULE.alphas_cumprod()
    assert alphas_cumprod.shape == (1000,)
    assert alphas_cumprod[0] == pytest.approx(1 - 0.00085, rel=1e-6)
    assert (np.diff(alphas_cumprod) < 0).all()
    assert SCHEDULE.timesteps(50)[[0, 1, -1]].tolist() == [981, 961, 1]
    noisy = add_noise(jnp.zeros(SHAPE), jnp.ones(SHAPE), jnp.array([999]), SCHEDULE)
    np.testing.assert_allclose(noisy, np.sqrt(1 - alphas_cumprod[999]), rtol=1e-5)


@pytest.mark.parametrize("steps", [0, -1, 1000, 1001])
def test_number_of_steps_out_of_range_is_refused(steps: int):
    with pytest.raises(UserError, match=f"steps={steps}"):
        SCHEDULE.timesteps(steps)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_prediction_target_gives_clean_latents_and_noise(prediction_type: str):
    """A model that predicts its target perfectly gives the clean latents and the noise."""
    schedule = ScheduleConfig(prediction_type=prediction_type)
    z0, noise = (jax.random.normal(jax.random.key(i), (2, 1, 2, 2, 4)) for i in range(2))
    t = jnp.array([20, 700])
    wanted, noisy = prediction_target(z0, noise, t, schedule), add_noise(z0, noise, t, schedule)
    for i in range(2):
        alpha = jnp.asarray(schedule.alphas_cumprod()[int(t[i])])
        found = predict_x0_eps(wanted[i : i + 1], noisy[i : i + 1], alpha, prediction_type)
        np.testing.assert_allclose(found[0], z0[i : i + 1], atol=1e-4)
        np.testing.assert_allclose(found[1], noise[i : i + 1], atol=1e-4)


def test_v_target_equals_diffusers_velocity():
    schedulers = pytest.importorskip("diffusers.schedulers")
    torch = pytest.importorskip("torch")
    theirs = schedulers.DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction"
    )
    z0, noise = (np.random.default_rng(i).standard_normal((2, 1, 2, 2, 4), np.float32) for i in range(2))
    t = np.array([20, 700])
    velocity = theirs.get_velocity(torch.from_numpy(z0), torch.from_numpy(noise), torch.from_numpy(t))
    ours = prediction_target(
        jnp.asarray(z0), jnp.asarray(noise), jnp.asarray(t), ScheduleConfig(prediction_type="v_prediction")
    )
    np.testing.assert_allclose(ours, velocity.numpy(), atol=1e-5)
