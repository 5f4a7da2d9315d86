"""Cached latents: training from them equals training from records, and what does not fit is refused."""

import dataclasses
import functools
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from test_loop import a_config, module_cache, train_on  # noqa: F401

import tiny_models
from conftest import COMPILE_FAST
from fyp_jax.config import save_config
from fyp_jax.data.datasets import open_records
from fyp_jax.data.example_source import ExampleSource
from fyp_jax.data.ingest.progress import locked_log
from fyp_jax.data.latents import FRAMES, LatentSource, open_latents
from fyp_jax.data.loader import Loader
from fyp_jax.errors import UserError
from fyp_jax.models.execution import ExecutionConfig
from fyp_jax.parallel.config import MeshConfig
from fyp_jax.training import latent_cache
from fyp_jax.training.config import TrainConfig
from fyp_jax.training.encoder_checksums import encoder_checksums
from fyp_jax.training.init import initialize_weights
from fyp_jax.training.latent_cache import cache_latents
from fyp_jax.training.stages import get_stage
from fyp_jax.types import Batch, LatentBatch

pytestmark = pytest.mark.slow  # seconds each; .ci/run runs them

ROOT = Path(__file__).parent.parent
VIDEOS = 5
SMALL_SHARDS = {"dtype": "float32", "records_per_shard": 2, "frames_per_device": 1}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline without weights, records of videos, and records of images with poses."""
    folder = tmp_path_factory.mktemp("world")
    tiny_models.write_pipeline(folder / "pipeline")
    tiny_models.write_videos(folder, VIDEOS)
    tiny_models.write_images(folder / "of_images", 3)
    return folder


def changed(config: TrainConfig, **data: Any) -> TrainConfig:
    """The config with other fields of its data."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **data))


def config_of(world: Path, kind: str = "captioned_videos") -> TrainConfig:
    config = a_config(world, Path("not written"))
    if kind == "captioned_videos":
        return config
    path = str(world / "of_images" / "records" / kind)
    return dataclasses.replace(changed(config, path=path, num_frames=1), stage="pose")


@pytest.fixture(scope="module")
def cache(world: Path) -> LatentSource:
    """Latents of the videos in float32, in shards of two videos."""
    found = cache_latents(config_of(world), world / "cache", **SMALL_SHARDS)
    assert found is not None
    return found


def from_cache(config: TrainConfig, cache: Path) -> TrainConfig:
    return changed(config, cached_latents=True, path=str(cache))


def batches(config: TrainConfig, records: Any, tokenize: Any, count: int) -> list[Any]:
    rows = range(config.data.batch_size)
    with Loader(
        records, config.data, tokenize, config.seed, rows, with_pose=config.stage == "pose"
    ) as loader:
        return [next(loader) for _ in range(count)]


@pytest.mark.parametrize("kind", ["captioned_videos", "pose_images"])
def test_batch_from_the_cache_is_what_the_encoders_make_of_the_batch_from_records(
    world: Path, cache: LatentSource, kind: str
):
    config = changed(config_of(world, kind), caption_dropout=0.4)
    if kind != cache.kind:
        found = cache_latents(config, world / "image_cache", **SMALL_SHARDS)
        assert found is not None
        cache = found
    begin = initialize_weights(config, get_stage(config.stage), None)
    encoders, params = begin.models.encoders, unflatten_dict(begin.frozen, sep="/")
    posterior = jax.jit(functools.partial(encoders.posterior, params))
    tokenize = lambda caption: encoders.tokenize(caption)[0][0]  # noqa: E731
    plain = batches(config, open_records(config.data.source), tokenize, 3)
    cached = batches(from_cache(config, cache.path), open_latents(cache.path), tokenize, 3)
    empty = tokenize("")
    dropped = [np.array_equal(ids, empty) for batch in plain for ids in batch.input_ids]
    assert 0 < sum(dropped) < len(dropped)
    for ours, theirs in zip(cached, plain, strict=True):
        assert isinstance(ours, LatentBatch)
        assert isinstance(theirs, Batch)
        mean, std = posterior(theirs.video)
        np.testing.assert_allclose(ours.mean, mean, atol=1e-5)
        np.testing.assert_allclose(ours.std, std, rtol=1e-5)
        np.testing.assert_allclose(ours.text, encoders.encode_text(params, theirs.input_ids), atol=1e-5)
        np.testing.assert_array_equal(ours.pose_images, theirs.pose_images)  # pyright: ignore


def test_frames_are_a_posterior_each_and_differ(cache: LatentSource):
    assert cache.disk_size.frames == VIDEOS * 24
    assert cache.disk_size.fps == pytest.approx(8)
    config = cache_config(cache, num_frames=24, stride=1)
    sample = ExampleSource(cache, config, seed=0).decode(cache[3], np.random.default_rng(0))
    assert len(np.unique(sample.mean.reshape(24, -1), axis=0)) == 24  # pyright: ignore


def cache_config(cache: LatentSource, world: Path | None = None, **fields: Any) -> Any:
    config = config_of(world or cache.path.parent).data
    return dataclasses.replace(config, path=str(cache.path), cached_latents=True, **fields)


def test_cache_that_is_there_stays_as_it_is_and_another_needs_overwrite(world: Path, cache: LatentSource):
    before = {file: file.stat().st_mtime_ns for file in cache.path.rglob("*")}
    config = config_of(world)
    again = cache_latents(config, cache.path, **SMALL_SHARDS)
    assert again is not None
    assert again.fingerprint == cache.fingerprint
    with pytest.raises(UserError, match="holds latents of another encoders; --overwrite"):
        cache_latents(dataclasses.replace(config, seed=1), cache.path, **SMALL_SHARDS)
    with pytest.raises(UserError, match="of another height and latent; --overwrite"):
        cache_latents(changed(config, height=128), cache.path, **SMALL_SHARDS)
    assert {file: file.stat().st_mtime_ns for file in cache.path.rglob("*")} == before


def test_damaged_cache_is_refused_and_replaced_by_overwrite(world: Path, cache: LatentSource, tmp_path: Path):
    out = shutil.copytree(cache.path, tmp_path / "cache")
    shutil.rmtree(out / "latent_frames")
    with pytest.raises(UserError, match="latent_frames is missing"):
        cache_latents(config_of(world), out, **SMALL_SHARDS)
    again = cache_latents(config_of(world), out, overwrite=True, **SMALL_SHARDS)
    assert again is not None
    assert again.fingerprint == cache.fingerprint


def test_run_of_another_size_crop_or_pipeline_is_refused(cache: LatentSource):
    with pytest.raises(UserError, match=r"are of frames of 64x64, but data.width=128; set data.width=64"):
        cache.check(cache_config(cache, width=128))
    with pytest.raises(UserError, match="data.random_crop=32: a random crop is another part"):
        cache.check(cache_config(cache, random_crop=32))
    cache.check(cache_config(cache, stride=1, num_frames=9))
    cache.check_encoders(dict(cache.spec.encoders))
    with pytest.raises(UserError, match="of another pipeline: its vae differs from this run's"):
        cache.check_encoders({**cache.spec.encoders, "vae": "00000000"})
    with pytest.raises(UserError, match="its text encoder and tokenizer differ"):
        cache.check_encoders({"vae": cache.spec.encoders["vae"]})


def test_training_with_other_encoders_than_the_cache_is_refused(
    world: Path, cache: LatentSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = dataclasses.replace(from_cache(a_config(world, tmp_path), cache.path), seed=1)
    with pytest.raises(UserError, match="another pipeline: its vae and text encoder differ"):
        train_on(1, config, monkeypatch)


def test_records_and_caches_are_not_taken_for_each_other(world: Path, cache: LatentSource):
    with pytest.raises(UserError, match="holds cached latents, which data.cached_latents=true trains from"):
        open_records(cache.path)
    with pytest.raises(UserError, match="holds no cached latents; make them with scripts/cache_latents.py"):
        open_latents(world / "records")


def test_checksums_depend_on_what_latents_depend_on():
    encoders = tiny_models.encoders()
    params: Any = unflatten_dict(tiny_models.params(tiny_models.models("motion", ExecutionConfig())), sep="/")
    before = encoder_checksums(encoders, params)

    def with_change(model: str, part: str) -> dict[str, str]:
        tree = jax.tree.map(lambda x: x, params)
        tree[model][part] = jax.tree.map(lambda x: x + 1, tree[model][part])
        return encoder_checksums(encoders, tree)

    assert with_change("vae", "decoder") == before
    assert with_change("vae", "quant_conv") == {**before, "vae": with_change("vae", "quant_conv")["vae"]}
    assert with_change("vae", "encoder")["vae"] != before["vae"]
    assert with_change("text_encoder", "text_model")["text_encoder"] != before["text_encoder"]
    other = dataclasses.replace(encoders, extended_spec=encoders.spec._replace(padding=7))
    assert encoder_checksums(other, params)["tokenizer"] != before["tokenizer"]
    bfloat16 = dataclasses.replace(encoders, dtype=jax.numpy.dtype("bfloat16"))
    assert encoder_checksums(bfloat16, params) == before


@pytest.mark.parametrize(
    ("fields", "data", "message"),
    [
        ({}, {"random_crop": 64}, "a random crop is another part of a frame at each step"),
        ({}, {"path": "synthetic://captioned_videos"}, "renders another scene for each example"),
        ({"stage": "autoencoder"}, {"num_frames": 1}, "stage=autoencoder trains the vae"),
        ({"stage": "image"}, {"num_frames": 1}, "stage=image trains the text encoder"),
        ({"stage": "one_shot"}, {"path": None, "video": "a.mp4", "caption": "a"}, "trains on one clip"),
    ],
)
def test_what_changes_in_a_run_is_not_cached(
    world: Path, tmp_path: Path, fields: dict[str, Any], data: dict[str, Any], message: str
):
    config = dataclasses.replace(changed(config_of(world), **data), **fields)
    with pytest.raises(UserError, match=message):
        cache_latents(config, tmp_path)
    with pytest.raises(UserError, match=message):
        changed(config, cached_latents=True).check()
    with pytest.raises(UserError, match="give the records to encode"):
        cache_latents(changed(config, cached_latents=True), tmp_path)


class OneBroken:
    """The records of videos, of which one cannot be decoded."""

    def __init__(self, records: Any):
        self.records, self.kind, self.fingerprint = records, records.kind, records.fingerprint

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.records[index]
        return {**record, "video": record["video"][:200]} if index == 1 else record


def test_interrupted_cache_is_resumed_and_a_broken_record_is_skipped_as_without_a_cache(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = config_of(world)
    broken = OneBroken(open_records(config.data.source))
    monkeypatch.setattr(latent_cache, "open_records", lambda path: broken)
    write, calls = latent_cache.write_group, []

    def interrupted(*arguments: Any) -> Any:
        if calls:
            raise KeyboardInterrupt
        calls.append(arguments)
        return write(*arguments)

    monkeypatch.setattr(latent_cache, "write_group", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache_latents(config, tmp_path, **SMALL_SHARDS)
    with pytest.raises(UserError, match="holds no cached latents; run the same command again"):
        open_latents(tmp_path)
    with locked_log(tmp_path / "latents.process-0"), pytest.raises(UserError, match="another process is"):
        cache_latents(config, tmp_path, **SMALL_SHARDS)
    with pytest.raises(UserError, match="an unfinished run of another stored in is here"):
        cache_latents(config, tmp_path, **{**SMALL_SHARDS, "dtype": "float16"})
    monkeypatch.setattr(latent_cache, "write_group", write)
    (first,) = tmp_path.rglob(f"{FRAMES}*00000")
    written = first.stat().st_mtime_ns
    cache = cache_latents(config, tmp_path, **SMALL_SHARDS)
    assert cache is not None
    (first,) = tmp_path.rglob(f"{FRAMES}*00000")
    assert first.stat().st_mtime_ns == written
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latent_clips", "latent_frames"]
    assert (len(cache), cache.disk_size.problems) == (VIDEOS, 1)
    allowed = {"max_corrupt_fraction": 0.5}
    plain = ExampleSource(broken, dataclasses.replace(config.data, **allowed), 0)
    cached = ExampleSource(cache, cache_config(cache, world, **allowed), 0)
    met = set()
    for index in range(10):
        ours, theirs = cached[index], plain[index]
        met |= set(ours.rejected)
        assert ours.rejected.keys() == theirs.rejected.keys()
    assert met == {"1.mp4"}


@pytest.fixture(scope="module")
def plain_losses(world: Path) -> list[float]:
    """Losses of 20 steps on the records, with dropped captions."""
    with pytest.MonkeyPatch.context() as patch:
        found = train_on(1, twenty_steps(world, world / "plain"), patch)
    assert len(set(found)) == 20
    return [float(x) for x in found]


def twenty_steps(world: Path, out: Path) -> TrainConfig:
    return changed(a_config(world, out, num_train_steps=20), caption_dropout=0.3)


def test_losses_from_cached_latents_equal_those_from_records_over_20_steps(
    world: Path,
    cache: LatentSource,
    plain_losses: list[float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    config = changed(from_cache(twenty_steps(world, tmp_path), cache.path), workers=1)
    found = train_on(1, config, monkeypatch)
    np.testing.assert_allclose([float(x) for x in found], plain_losses, rtol=1e-5)


@pytest.mark.release
def test_losses_from_latents_in_float16_on_a_mesh_are_near_those_from_records(
    world: Path, plain_losses: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    sizes = {"records_per_shard": 2, "frames_per_device": 1}
    assert cache_latents(config_of(world), tmp_path / "cache", **sizes) is not None
    config = from_cache(twenty_steps(world, tmp_path), tmp_path / "cache")
    mesh = MeshConfig(data=2, fsdp=2, frame=2)
    found = train_on(8, dataclasses.replace(config, mesh=mesh), monkeypatch)
    worst = max(abs(float(x) / y - 1) for x, y in zip(found, plain_losses, strict=True))
    assert worst < 2e-3, worst


@pytest.mark.release
def test_command_in_two_processes_caches_what_one_process_does(
    world: Path, cache: LatentSource, tmp_path: Path
):
    save_config(config_of(world), tmp_path / "config.yaml")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out = tmp_path / "out"
    command = [sys.executable, "scripts/cache_latents.py", "--config", str(tmp_path / "config.yaml")]
    command += ["--out", str(out), "--records-per-shard", "2", "mesh.num_processes=2"]
    environment = {**os.environ, "XLA_FLAGS": f"{COMPILE_FAST} --xla_force_host_platform_device_count=2"}
    processes = [
        subprocess.Popen(
            [*command, f"mesh.coordinator=127.0.0.1:{port}", f"mesh.process_id={i}"],
            env=environment,
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for i in range(2)
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    said = [line for line in outputs[1][0].splitlines() if not line.startswith("[Gloo]")]
    assert said == [], "the first process speaks for both"
    match = re.search(r"an hour of video takes ([\d.]+) GB at 8 frames per second", outputs[0][0])
    assert match, outputs[0]
    found = open_latents(out)
    assert float(match[1]) * 1e9 == pytest.approx(3600 * 8 * found.disk_size.total / 120, rel=0.01, abs=5e5)
    assert found.spec == cache.spec._replace(stored_in="float16")
    for index in range(VIDEOS):
        ours, theirs = (
            ExampleSource(x, cache_config(cache, num_frames=24, stride=1), 0).decode(
                x[index], np.random.default_rng(0)
            )
            for x in (found, cache)
        )
        for a, b in zip(ours[:3], theirs[:3], strict=True):
            assert a.dtype == np.float16  # pyright: ignore
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4)  # pyright: ignore
