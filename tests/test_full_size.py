"""The UNet at the size of Stable Diffusion 1.4, and the benchmark scripts. Takes minutes and 10 GB."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conftest import synthesise
from fyp_jax.convert.torch_key_mapping import inflate_unet
from fyp_jax.models.unet import UNet3D, UNet3DConfig

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.release


def test_image_unet_equals_pytorch_diffusers():
    torch = pytest.importorskip("torch")
    from diffusers import UNet2DConditionModel

    config = UNet3DConfig()
    with torch.device("meta"):
        theirs = UNet2DConditionModel(cross_attention_dim=768, block_out_channels=config.block_out_channels)
    state_dict = {name: synthesise(name, tuple(value.shape)) for name, value in theirs.state_dict().items()}
    theirs.load_state_dict({name: torch.from_numpy(value) for name, value in state_dict.items()}, assign=True)
    latents, text = (
        np.random.default_rng(0).standard_normal((1, 1, 16, 16, 4), np.float32),
        np.ones((1, 9, 768)),
    )
    with torch.no_grad():
        images = torch.from_numpy(latents[:, 0].transpose(0, 3, 1, 2))
        expected = theirs(images, 321, torch.from_numpy(text).float()).sample.numpy()
    del theirs

    params = inflate_unet(state_dict, config, seed=0)
    apply = jax.jit(UNet3D(config).apply)
    eps = apply({"params": params}, jnp.asarray(latents), jnp.array([321]), jnp.asarray(text, jnp.float32))
    error = np.abs(np.asarray(eps)[:, 0].transpose(0, 3, 1, 2) - expected).max() / np.abs(expected).max()
    assert error < 1e-4, f"relative error {error:.1e}"


def test_step_benchmark_prints_its_figures():
    """At a small size, since the figures themselves are not tested."""
    command = [sys.executable, "scripts/benchmark.py", "--size", "mini", "--side", "8", "--runs", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    for line in (
        r"one denoising step +\d+\.\d+ s",
        r"ratio +\d+\.\d+",
        r"FLOPs of our step +\d",
        r"fraction of that peak +\d+%",
    ):
        assert re.search(line, done.stdout), f"{line} not in\n{done.stdout}"


def test_attention_benchmark_shows_blockwise_attention():
    small = ["--side", "16", "--frames", "2", "--runs", "1"]
    command = [sys.executable, "scripts/benchmark.py", "attention", *small]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"blockwise \(ours\) +\d+ ms +\d+ GFLOP/s", done.stdout), done.stdout


def test_motion_benchmark_and_its_baseline_have_the_same_loss():
    """The baseline trains all of the UNet and needs more memory, but computes the same loss."""
    small = ["--size", "mini", "--side", "8", "--frames", "2", "--runs", "1"]
    command = [sys.executable, "scripts/benchmark.py", "motion", *small]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    rows = dict(re.findall(r"^ *([a-z, A-Z]+?)  +([\d. ]+)$", done.stdout, re.MULTILINE))
    ours, baseline, ratio = map(float, rows["memory, GiB"].split())
    assert ratio > 1.5, done.stdout
    assert baseline > ours
    assert len(rows["time of a step, s"].split()) == 3
    losses = re.search(r"loss of the first step: ([\d.]+), ([\d.]+)", done.stdout)
    assert losses, done.stdout
    np.testing.assert_allclose(*map(float, losses.groups()), rtol=1e-4)


def test_data_benchmark_compares_with_decoding_alone():
    command = [
        sys.executable,
        "scripts/benchmark.py",
        "data",
        "--runs",
        "1",
        "--side",
        "64",
        "--workers",
        "1",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("baseline", "baseline, not scaled", "loader, 0 workers", "loader, 1 workers"):
        assert re.search(rf"{name} +[\d.]+ clips/s, [\d.]+ x baseline", done.stdout), done.stdout
