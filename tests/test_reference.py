"""Outputs of the published PyTorch model, computed once on synthetic weights, against this package."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conftest import FIXTURES, Reference, channels_last, tagged
from fyp_jax.diffusion import ddim
from fyp_jax.diffusion.schedule import ScheduleConfig, add_noise
from fyp_jax.models.blocks import DownBlock
from fyp_jax.models.pose_encoder import PoseEncoder
from fyp_jax.models.unet import UNet3D
from fyp_jax.pipeline.guidance import cfg_denoiser

with np.load(FIXTURES / "small_reference.npz") as _arrays:
    MODULES = sorted(name for name in _arrays if name.startswith("inside/"))

FIRST_BLOCK = [name for name in MODULES if name.startswith("inside/down_blocks.0")]

assert len(MODULES) >= 15
assert len(FIRST_BLOCK) >= 8


def assert_close(ours: jax.Array, theirs: np.ndarray) -> None:
    """Within 1e-5 of the largest number; float32 agrees to about 1e-6."""
    error = np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()
    assert error < 1e-5, f"relative error {error:.1e}"


@pytest.fixture(scope="module")
def pose_features(reference: Reference) -> list[jax.Array]:
    apply = jax.jit(PoseEncoder(reference.config).apply)
    return apply({"params": reference.params["pose_encoder"]}, reference.skeleton)


@pytest.fixture(scope="module")
def intermediates(reference: Reference, pose_features: list[jax.Array]) -> tuple[jax.Array, dict]:
    unet = UNet3D(reference.config)
    t = jnp.array([501])
    variables = {"params": reference.params["unet"]}
    run = jax.jit(lambda v, z: unet.apply(v, z, t, reference.text, pose_features, capture_intermediates=True))
    eps, state = run(variables, reference.latents)
    return eps, state["intermediates"]


@pytest.fixture(scope="module")
def first_block(reference: Reference, pose_features: list[jax.Array]) -> dict:
    """Outputs of the modules of the first down block, for the inputs that it has in the published model."""
    config, arrays = reference.config, reference.arrays
    block = DownBlock(config, config.block_out_channels[0], config.heads[0], last=False)
    x, time = map(jnp.asarray, (channels_last(arrays["inside/conv_in"]), arrays["inside/time_embedding"]))
    run = jax.jit(
        lambda params: block.apply(
            {"params": params}, x, time, reference.text, pose_features[0], capture_intermediates=True
        )
    )
    return {"down_blocks_0": run(reference.params["unet"]["down_blocks_0"])[1]["intermediates"]}


@pytest.mark.parametrize("level", range(4))
def test_pose_features_equal_the_published_ones(
    reference: Reference, pose_features: list[jax.Array], level: int
):
    assert len(pose_features) == 4
    assert_close(pose_features[level], channels_last(reference.arrays[f"pose_feature_{level}"]))


@pytest.mark.slow
def test_noise_prediction_with_pose_equals_the_published_one(
    reference: Reference, intermediates: tuple[jax.Array, dict]
):
    assert_close(intermediates[0], channels_last(reference.arrays["eps_pose"]))


@pytest.mark.slow
def test_noise_prediction_without_pose_equals_the_published_one(reference: Reference):
    unet = UNet3D(reference.config)
    eps = jax.jit(unet.apply)(
        {"params": reference.params["unet"]}, reference.latents, jnp.array([501]), reference.text
    )
    assert_close(eps, channels_last(reference.arrays["eps_no_pose"]))


@pytest.mark.parametrize("name", FIRST_BLOCK)
def test_output_of_each_module_in_the_first_block_equals_the_published_one(
    reference: Reference, first_block: dict, name: str
):
    assert_module_close(first_block, name, reference)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_output_of_each_module_equals_the_published_one(
    reference: Reference, intermediates: tuple[jax.Array, dict], name: str
):
    """Shows in which module two models begin to differ."""
    assert_module_close(intermediates[1], name, reference)


def assert_module_close(outputs: dict, name: str, reference: Reference) -> None:
    """Compare the output of a module in PyTorch's axes."""
    module = name.removeprefix("inside/")
    for part in torch_to_flax(module).split("."):
        outputs = outputs[part]
    ours, theirs = outputs["__call__"][0], reference.arrays[name]
    if isinstance(ours, tuple):  # a down block also gives its skips
        ours = ours[0]
    if module.endswith("conv_temporal"):
        theirs = theirs.transpose(0, 2, 1)
    elif theirs.ndim == 5:
        theirs = channels_last(theirs)
    assert_close(ours.reshape(theirs.shape), theirs)


def torch_to_flax(module: str) -> str:
    """down_blocks.0.resnets.1 -> down_blocks_0.resnets_1"""
    parts: list[str] = []
    for part in module.split("."):
        parts[-1:] = [f"{parts[-1]}_{part}"] if part.isdigit() else [*parts[-1:], part]
    return ".".join(parts)


@pytest.mark.slow
def test_ddim_with_guidance_and_pose_equals_the_published_one(
    reference: Reference, pose_features: list[jax.Array]
):
    schedule = ScheduleConfig()
    assert schedule.timesteps(5).tolist() == reference.arrays["ddim_timesteps"].tolist()
    denoise = cfg_denoiser(
        UNet3D(reference.config),
        reference.params["unet"],
        reference.text,
        reference.uncond,
        pose_features,
        7.5,
    )
    latents = jax.jit(lambda z: ddim.sample(denoise, z, 5, schedule))(reference.latents)
    assert_close(latents, channels_last(reference.arrays["ddim_latents"]))


@pytest.mark.slow
def test_inversion_equals_the_published_one(reference: Reference):
    unet = UNet3D(reference.config)

    def denoise(z: jax.Array, t: jax.Array) -> jax.Array:
        return unet.apply({"params": reference.params["unet"]}, z, t[None], reference.text)

    latents = jax.jit(lambda z: ddim.invert(denoise, z, 5, ScheduleConfig()))(0.5 * reference.latents)
    assert_close(latents, channels_last(reference.arrays["inversion_latents"]))


def test_noisy_latents_equal_the_published_ones(reference: Reference):
    noise = jnp.asarray(channels_last(tagged("small/noise", (1, 4, 3, 8, 8))))
    noisy = add_noise(reference.latents, noise, jnp.array([501]), ScheduleConfig())
    assert_close(noisy, channels_last(reference.arrays["noisy"]))
