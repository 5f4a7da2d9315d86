"""Checks shapes at run time in all of fyp_jax, and offers the oracle that several files compare with."""

import json
import os
import zlib
from pathlib import Path
from typing import Any, NamedTuple

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"

from jaxtyping import install_import_hook

with install_import_hook("fyp_jax", "beartype.beartype"):
    import fyp_jax  # noqa: F401

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from fyp_jax.convert.torch_names import from_torch  # noqa: E402
from fyp_jax.models.unet import UNet3DConfig  # noqa: E402

jax.config.update("jax_numpy_rank_promotion", "raise")

FIXTURES = Path(__file__).parent / "fixtures"


def synthesise(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A parameter of the oracle: the published PyTorch model was filled with the same numbers."""
    x = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) == 1:
        x = 1 + 0.1 * x if name.endswith("weight") else 0.1 * x
    else:
        x = x / np.sqrt(np.prod(shape[1:]))
    return x.astype(np.float32)


def tagged(tag: str, shape: tuple[int, ...]) -> np.ndarray:
    """An input of the oracle, standard normal."""
    return np.random.default_rng(zlib.crc32(tag.encode())).standard_normal(shape).astype(np.float32)


def channels_last(x: np.ndarray) -> np.ndarray:
    """b c f h w -> b f h w c"""
    return x.transpose(0, 2, 3, 4, 1)


def synthetic_model(config: UNet3DConfig, layout: dict[str, Any]) -> dict[str, Any]:
    """Our parameters, from PyTorch arrays of these names and shapes."""
    return from_torch({name: synthesise(name, tuple(shape)) for name, shape in layout.items()}, config)


class Oracle(NamedTuple):
    """A small model with the oracle's weights, its inputs (channels last) and its outputs (PyTorch's axes)."""

    config: UNet3DConfig
    state_dict: dict[str, np.ndarray]
    params: dict[str, Any]
    latents: np.ndarray
    text: np.ndarray
    uncond: np.ndarray
    skeleton: np.ndarray
    arrays: dict[str, np.ndarray]


@pytest.fixture(scope="session")
def oracle() -> Oracle:
    layout = json.loads((FIXTURES / "small_layout.json").read_text())
    config = UNet3DConfig(**layout["config"])
    state_dict = {name: synthesise(name, tuple(shape)) for name, shape in layout["state_dict"].items()}
    skeleton = np.random.default_rng(zlib.crc32(b"small/skeleton")).random((1, 3, 3, 64, 64))
    with np.load(FIXTURES / "small_oracle.npz") as arrays:
        return Oracle(
            config,
            state_dict,
            from_torch(state_dict, config),
            channels_last(tagged("small/sample", (1, 4, 3, 8, 8))),
            tagged("small/text", (1, 7, 32)),
            tagged("small/uncond", (1, 7, 32)),
            skeleton.astype(np.float32).transpose(0, 1, 3, 4, 2),
            dict(arrays),
        )
