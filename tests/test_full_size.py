"""At the size of Stable Diffusion 1.4, and the tools that measure it. Minutes, and 10 GB."""

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

pytestmark = pytest.mark.slow


def test_image_unet_agrees_with_pytorch():
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


def test_benchmark_prints_its_figures():
    """Small, as the figures of a full run are for people."""
    command = [sys.executable, "scripts/benchmark.py", "--size", "mini", "--side", "8", "--runs", "1"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    for line in (
        r"one denoise step +\d+\.\d+ s",
        r"ratio +\d+\.\d+",
        r"FLOPs of our step +\d",
        r"share .* \d+%",
    ):
        assert re.search(line, done.stdout), f"{line} not in\n{done.stdout}"


def test_attention_benchmark_shows_ours():
    small = ["--side", "16", "--frames", "2", "--runs", "1"]
    command = [sys.executable, "scripts/benchmark.py", "attention", *small]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert re.search(r"in blocks \(ours\) +\d+ ms +\d+ GFLOP/s", done.stdout), done.stdout


def test_motion_benchmark_compares_the_same_step():
    """The plain way trains all of the UNet and gives nothing back, and has the same loss."""
    small = ["--size", "mini", "--side", "8", "--frames", "2", "--runs", "1"]
    command = [sys.executable, "scripts/benchmark.py", "motion", *small]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    rows = dict(re.findall(r"^ *([a-z, A-Z]+?)  +([\d. ]+)$", done.stdout, re.MULTILINE))
    ours, plain, ratio = map(float, rows["memory, GiB"].split())
    assert ratio > 1.5, done.stdout
    assert plain > ours
    assert len(rows["a step, s"].split()) == 3
    losses = re.search(r"loss of the first step: ([\d.]+), ([\d.]+)", done.stdout)
    assert losses, done.stdout
    np.testing.assert_allclose(*map(float, losses.groups()), rtol=1e-4)


def test_data_benchmark_compares_with_plain_decoding():
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
    for way in ("plain", "plain, not scaled", "loader, 0 workers", "loader, 1 workers"):
        assert re.search(rf"{way} +[\d.]+ clips/s, [\d.]+ x plain", done.stdout), done.stdout
