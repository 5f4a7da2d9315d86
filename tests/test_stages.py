"""Which parameters a stage trains, what the optimizer does with them, and the noise of a step."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from conftest import slow
from fyp_jax import trees
from fyp_jax.checkpoints.inference import inference_shapes
from fyp_jax.errors import UserError
from fyp_jax.models.unet_config import UNet3DConfig
from fyp_jax.training.config import OptimizerConfig
from fyp_jax.training.losses import sample_noise
from fyp_jax.training.optimizer import learning_rate, make_optimizer, update_ema
from fyp_jax.training.stages import STAGES, get_stage

ENCODERS = [
    "vae/encoder/conv_in/kernel",
    "vae/decoder/conv_in/kernel",
    "text_encoder/text_model/final_layer_norm/bias",
]


@pytest.fixture(scope="module")
def sd14() -> dict[str, jax.ShapeDtypeStruct]:
    return flatten_dict(inference_shapes(UNet3DConfig()), sep="/")


@pytest.mark.parametrize(
    ("name", "arrays", "millions"), [("pose", 38, 77.4), ("motion", 144, 86.3), ("one_shot", 112, 74.4)]
)
def test_stage_trains_the_arrays_that_the_paper_trains(sd14: dict, name: str, arrays: int, millions: float):
    trained = [path for path, chosen in STAGES[name].trains([*sd14, *ENCODERS]).items() if chosen]
    assert len(trained) == arrays
    assert round(sum(sd14[path].size for path in trained) / 1e6, 1) == millions


def test_patterns_of_all_stages_match_a_unet_with_linear_projections():
    config = UNet3DConfig(use_linear_projection=True, attention_head_dim=(5, 10, 20, 20))
    paths = flatten_dict(inference_shapes(config), sep="/")
    for each in STAGES.values():
        each.trains([*paths, *ENCODERS])


def test_parameter_that_a_stage_does_not_name_is_frozen(sd14: dict):
    trained = STAGES["motion"].trains([*sd14, *ENCODERS, "unet/controlnet/kernel"])
    assert trained["unet/controlnet/kernel"] is False


def test_pattern_that_matches_nothing_stops(sd14: dict):
    with pytest.raises(trees.RuleMismatch, match=r"1 patterns that match nothing \(pose_encoder/\.\*\)"):
        STAGES["pose"].trains([path for path in [*sd14, *ENCODERS] if not path.startswith("pose_encoder")])


def test_pattern_matches_whole_paths_only():
    assert trees.match_patterns(["a"], ["a", "ab", "ba"]) == {"a": True, "ab": False, "ba": False}


def test_unknown_stage_is_refused_with_all_names():
    with pytest.raises(
        UserError,
        match="stage=both: the stages are pose, motion, one_shot, autoencoder, decoder, image, video",
    ):
        get_stage("both")


def test_learning_rate_follows_warmup_and_schedule():
    constant = learning_rate(OptimizerConfig(lr=2.0), 100)
    assert [float(constant(i)) for i in (0, 1, 99)] == [2, 2, 2]
    warm = learning_rate(OptimizerConfig(lr=2.0, warmup_steps=4), 100)
    np.testing.assert_allclose([warm(i) for i in (0, 1, 2, 4, 99)], [0, 0.5, 1, 2, 2], rtol=1e-6)
    cosine = learning_rate(OptimizerConfig(lr=2.0, warmup_steps=10, lr_schedule="cosine"), 110)
    np.testing.assert_allclose([cosine(i) for i in (5, 10, 60, 110)], [1, 2, 1, 0], atol=1e-6)


def test_three_updates_equal_those_of_torch_adamw_with_clipping():
    torch = pytest.importorskip("torch")
    config = OptimizerConfig(lr=0.1, weight_decay=0.3, max_grad_norm=0.5, beta1=0.8, beta2=0.95)
    start, gradients = (
        np.linspace(-1, 1, 5, dtype=np.float32),
        np.eye(3, 5, dtype=np.float32) * [[1], [2], [0.1]],
    )
    ours, optimizer = jnp.asarray(start), make_optimizer(config, 100)
    state = optimizer.init(ours)
    theirs = torch.nn.Parameter(torch.from_numpy(start.copy()))
    adamw = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.3, betas=(0.8, 0.95), eps=1e-8)
    for gradient in gradients.astype(np.float32):
        updates, state = optimizer.update(jnp.asarray(gradient), state, ours)
        ours = optax.apply_updates(ours, updates)
        theirs.grad = torch.from_numpy(gradient.copy())
        torch.nn.utils.clip_grad_norm_([theirs], 0.5)
        adamw.step()
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-5)


def test_muon_moves_a_kernel_as_pytorch_does_and_a_bias_as_adamw_does():
    """PyTorch orthogonalises in bfloat16; its matrices are transposed."""
    torch = pytest.importorskip("torch")
    config = OptimizerConfig(name="muon", lr=0.1, weight_decay=0.3, max_grad_norm=None)
    rng = np.random.default_rng(0)
    start = {
        "conv/kernel": rng.normal(size=(3, 3, 2, 8)).astype(np.float32),
        "conv/bias": rng.normal(size=8).astype(np.float32),
    }
    ours: Any = {name: jnp.asarray(x) for name, x in start.items()}
    optimizer, adamw = (
        make_optimizer(config, 100),
        make_optimizer(dataclasses.replace(config, name="adamw"), 100),
    )
    state, bias, bias_state = optimizer.init(ours), ours["conv/bias"], adamw.init(ours["conv/bias"])
    theirs = torch.nn.Parameter(torch.from_numpy(start["conv/kernel"].reshape(18, 8).T.copy()))
    muon = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.3, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        gradient = {name: rng.normal(size=x.shape).astype(np.float32) for name, x in start.items()}
        updates, state = optimizer.update({name: jnp.asarray(x) for name, x in gradient.items()}, state, ours)
        ours = optax.apply_updates(ours, updates)
        theirs.grad = torch.from_numpy(gradient["conv/kernel"].reshape(18, 8).T.copy())
        muon.step()
        updates, bias_state = adamw.update(jnp.asarray(gradient["conv/bias"]), bias_state, bias)
        bias = optax.apply_updates(bias, updates)
    moved = np.asarray(ours["conv/kernel"]) - start["conv/kernel"]
    expected = theirs.detach().numpy().T.reshape(3, 3, 2, 8) - start["conv/kernel"]
    assert np.linalg.norm(moved - expected) < 0.04 * np.linalg.norm(expected)
    np.testing.assert_allclose(ours["conv/bias"], bias, rtol=1e-6)


def test_unknown_optimizer_is_refused():
    with pytest.raises(UserError, match="optimizer.name=sgd is out of range"):
        OptimizerConfig(name="sgd").check()


def test_update_ema_weights_the_past_by_decay():
    ema_params = {"w": jnp.zeros(())}
    for value in (1.0, 2.0):
        ema_params = update_ema(ema_params, {"w": jnp.asarray(value)}, 0.75)
    np.testing.assert_allclose(ema_params["w"], 0.75 * 0.25 * 1 + 0.25 * 2)


@pytest.mark.parametrize(
    "name", ["lr", "beta1", "max_grad_norm", "ema_decay", "grad_accumulation_steps", "eps"]
)
def test_optimizer_value_out_of_range_is_refused(name: str):
    with pytest.raises(UserError, match=f"optimizer.{name}=-1"):
        dataclasses.replace(
            OptimizerConfig(), **{name: -1 if name == "grad_accumulation_steps" else -1.0}
        ).check()


@pytest.mark.parametrize("noise_correlation", [slow(0.0), 0.5])
def test_noise_of_a_shard_equals_that_part_of_the_whole_batch(noise_correlation: float):
    """No two frames have the same noise."""
    key, latent = jax.random.key(0), (2, 3, 4)
    whole = sample_noise(key, jnp.arange(6), jnp.arange(8), latent, 1000, noise_correlation)
    shard = sample_noise(key, jnp.arange(2, 4), jnp.arange(4, 8), latent, 1000, noise_correlation)
    np.testing.assert_array_equal(shard.t, whole.t[2:4])
    np.testing.assert_array_equal(shard.noise, whole.noise[2:4, 4:])
    np.testing.assert_array_equal(shard.posterior, whole.posterior[2:4, 4:])
    images = np.concatenate([np.reshape(x, (6 * 8, -1)) for x in (whole.noise, whole.posterior)])
    assert len(np.unique(images, axis=0)) == 2 * 6 * 8


def test_frames_have_the_given_noise_correlation():
    noise = sample_noise(jax.random.key(0), jnp.arange(3), jnp.arange(2), (64, 64, 4), 1000, 0.5).noise
    both = np.moveaxis(np.asarray(noise), 0, 1).reshape(2, -1)
    np.testing.assert_allclose(np.cov(both), [[1, 0.5], [0.5, 1]], atol=0.04)
    clips = np.asarray(noise).reshape(3, -1)
    np.testing.assert_allclose(np.cov(clips), np.eye(3), atol=0.04)


def test_noise_is_normal_and_timesteps_are_uniform():
    noise_sample = sample_noise(jax.random.key(1), jnp.arange(2000), jnp.arange(2), (2, 2, 2), 1000)
    for numbers in (noise_sample.noise, noise_sample.posterior):
        assert abs(float(numbers.mean())) < 0.02
        assert abs(float(numbers.std()) - 1) < 0.02
    assert 0 <= int(noise_sample.t.min()) < 10
    assert 990 <= int(noise_sample.t.max()) < 1000
    assert abs(float(noise_sample.t.mean()) - 499.5) < 20
