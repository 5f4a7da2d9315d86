"""Cached latents: training from them equals training from records, and what does not fit is refused."""

import dataclasses
import functools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from test_loop import a_config, losses, module_cache, train_on  # noqa: F401

import tiny_models
from fyp_jax.config import save_config
from fyp_jax.data.example_source import ExampleSource
from fyp_jax.data.latents import LatentSource, open_latents
from fyp_jax.errors import UserError
from fyp_jax.training import latent_cache
from fyp_jax.training.config import TrainConfig
from fyp_jax.training.latent_cache import cache_latents

VIDEOS = 5


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline without weights, records of videos and of images."""
    folder = tmp_path_factory.mktemp("world")
    tiny_models.write_pipeline(folder / "pipeline")
    tiny_models.write_videos(folder, VIDEOS)
    tiny_models.write_images(folder, 4)
    return folder


def changed(config: TrainConfig, **data: Any) -> TrainConfig:
    """The config with other fields of its data."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **data))


@pytest.fixture(scope="module")
def cache(world: Path) -> LatentSource:
    """Latents of the videos in float32, in shards of two videos."""
    found = cache_latents(a_config(world, Path("x")), world / "cache", dtype="float32", records_per_shard=2)
    assert found is not None
    return found


def from_cache(config: TrainConfig, cache: Path) -> TrainConfig:
    return changed(config, cached_latents=True, path=str(cache))


@pytest.mark.slow
def test_losses_from_cached_latents_equal_those_from_records_over_20_steps(
    world: Path, cache: LatentSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = changed(a_config(world, tmp_path / "a", num_train_steps=20), caption_dropout=0.3)
    plain = train_on(1, config, monkeypatch)
    cached = dataclasses.replace(from_cache(config, cache.path), output_dir=str(tmp_path / "b"))
    found = train_on(1, cached, monkeypatch)
    np.testing.assert_allclose([float(x) for x in found], [float(x) for x in plain], rtol=1e-5)
    assert len(set(plain)) == 20
