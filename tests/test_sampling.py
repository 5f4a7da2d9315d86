"""The whole way from a prompt and a pose to frames, with a model of random weights."""

import dataclasses
import functools
import json
import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fyp_jax import sampling
from fyp_jax.config import SampleConfig, load_config
from fyp_jax.errors import UserError
from fyp_jax.models.unet import UNet3D
from fyp_jax.parallel.config import MeshConfig
from fyp_jax.parallel.mesh import make_mesh
from fyp_jax.pipeline.pipeline import (
    FollowYourPosePipeline,
    cfg_denoiser,
    checksum,
    load_sampler,
    prepare_latents,
    sample_to_files,
)
from fyp_jax.pose.config import PoseConfig
from fyp_jax.pose.loading import load_pose
from fyp_jax.tpu.flops import count_products, total_flops

MINI = SampleConfig(random_init=True, prompt=["a robot"])


@pytest.fixture(scope="module")
def loaded() -> tuple[FollowYourPosePipeline, dict[str, Any], dict[str, Any]]:
    return load_sampler(MINI)


@pytest.fixture(scope="module")
def poses() -> np.ndarray:
    return load_pose("dance", num_frames=3, stride=5, start=0, height=64, width=64)


def make(loaded: tuple, poses: np.ndarray | None, prompt: str = "a robot", **options: Any) -> np.ndarray:
    sampler, params, _ = loaded
    return sampler(params, prompt, poses, **{"steps": 2, "guidance": 2.0} | options)


@pytest.fixture(scope="module")
def clip(loaded: tuple, poses: np.ndarray) -> np.ndarray:
    return make(loaded, poses)


def test_a_clip(clip: np.ndarray, poses: np.ndarray):
    assert (clip.shape, clip.dtype) == (poses.shape, np.uint8)
    assert clip.std() > 5
    assert np.abs(clip[0].astype(int) - clip[1]).mean() > 1


def test_the_same_seed_gives_the_same_clip(loaded: tuple, poses: np.ndarray, clip: np.ndarray):
    np.testing.assert_array_equal(make(loaded, poses), clip)


@pytest.mark.parametrize(
    "change", [{"prompt": "a panda"}, {"negative_prompt": "blurry"}, {"seed": 1}, {"guidance": 5.0}]
)
def test_what_changes_a_clip(loaded: tuple, poses: np.ndarray, clip: np.ndarray, change: dict):
    assert np.abs(make(loaded, poses, **change).astype(int) - clip).mean() > 0.5


def test_another_pose_changes_a_clip(loaded: tuple, poses: np.ndarray, clip: np.ndarray):
    other = load_pose("dance", num_frames=3, stride=5, start=40, height=64, width=64)
    assert np.abs(make(loaded, other).astype(int) - clip).mean() > 0.5


def from_text(loaded: tuple, **options: Any) -> np.ndarray:
    """Of the text alone, and without the weights of a pose encoder."""
    sampler, params, record = loaded
    rest = {part: arrays for part, arrays in params.items() if part != "pose_encoder"}
    options = {"size": (3, 64, 64)} | options
    return make((sampler, rest, record), None, **options)


@pytest.fixture(scope="module")
def text_clip(loaded: tuple) -> np.ndarray:
    return from_text(loaded)


def test_a_clip_of_the_text_alone(loaded: tuple, clip: np.ndarray, text_clip: np.ndarray):
    assert (text_clip.shape, text_clip.dtype) == (clip.shape, np.uint8)
    assert np.abs(text_clip.astype(int) - clip).mean() > 0.5
    np.testing.assert_array_equal(from_text(loaded), text_clip)
    assert np.abs(from_text(loaded, seed=1).astype(int) - text_clip).mean() > 0.5


def test_no_pose_is_what_an_encoder_of_zeros_says(loaded: tuple, poses: np.ndarray, text_clip: np.ndarray):
    sampler, params, record = loaded
    zeros = jax.tree.map(jnp.zeros_like, params["pose_encoder"])
    silent = make((sampler, params | {"pose_encoder": zeros}, record), poses)
    assert np.abs(silent.astype(int) - text_clip).max() <= 1  # rounding


@pytest.mark.parametrize("size", [(0, 64, 64), (3, 60, 64), (3, 64, 100), (3, 0, 64)])
def test_sizes_of_no_clip(loaded: tuple, size: tuple[int, int, int]):
    with pytest.raises(ValueError, match="no clip has {} frames of {}x{}".format(*size)):
        from_text(loaded, size=size)


def test_a_skeleton_or_a_size(loaded: tuple, poses: np.ndarray):
    for skeleton, size in ((None, None), (poses, (3, 64, 64))):
        with pytest.raises(ValueError, match="a skeleton or a size, one of them"):
            make(loaded, skeleton, size=size)


def test_files_of_the_text_alone(loaded: tuple, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The loop is left out: what its clips are is tested above, here is what a run writes down."""
    monkeypatch.setattr(sampling, "load_sampler", lambda config, keep: loaded)
    monkeypatch.setattr(FollowYourPosePipeline, "denoise", lambda self, params, noise, *_, **options: noise)
    pose = PoseConfig(path=None, frames=3)
    config = dataclasses.replace(MINI, pose=pose, height=64, width=64, out=str(tmp_path))
    (first,) = sample_to_files(config)
    record = json.loads(first.with_suffix(".json").read_text())
    assert record["pose"] is None
    assert record["config"] == dataclasses.asdict(config)
    again = load_config(SampleConfig, first.with_name("config.yaml"), [])
    assert again == config
    (second,) = sample_to_files(again)
    assert second.parent != first.parent
    assert second.read_bytes() == first.read_bytes()


def test_chunks_of_the_decoder_do_not_show(loaded: tuple, clip: np.ndarray, poses: np.ndarray):
    for chunk in (1, 2):
        difference = np.abs(make(loaded, poses, decode_chunk_size=chunk).astype(int) - clip)
        assert difference.max() <= 1  # rounding


def test_each_step_is_told(loaded: tuple, poses: np.ndarray, clip: np.ndarray):
    told: list[int] = []
    np.testing.assert_array_equal(make(loaded, poses, on_step=lambda: told.append(1)), clip)
    assert len(told) == 2


def test_a_wide_clip(loaded: tuple):
    poses = load_pose("dance", num_frames=1, stride=1, start=0, height=64, width=128)
    assert make(loaded, poses, steps=1).shape == (1, 64, 128, 3)


def test_a_prompt_that_is_too_long_is_cut_and_told(
    loaded: tuple, poses: np.ndarray, caplog: pytest.LogCaptureFixture
):
    sampler, params, _ = loaded
    long = "robot " * 30
    with caplog.at_level(logging.WARNING):
        sampler(params, long + "umbrella", poses, steps=2, guidance=2.0)
    assert f"{sampler.frozen.facts.tokens} tokens" in caplog.text
    assert "umbrella" in caplog.text


def test_a_step_is_the_unet_on_both_halves_and_nothing_else(loaded: tuple):
    """Its FLOPs are those of the UNet: no pose, no text, no VAE in it."""
    sampler, params, _ = loaded
    config = sampler.unet.config
    z, text = jnp.zeros((1, 2, 8, 8, config.in_channels)), jnp.zeros((1, 77, config.cross_attention_dim))
    maps = jax.eval_shape(sampler.encode_pose, params, jnp.zeros((1, 2, 64, 64, 3)))
    features = [jnp.zeros(leaf.shape) for leaf in maps]

    def step(z: jax.Array) -> jax.Array:
        given = params, z, jnp.int32(3), text, text, features, jnp.float32(2.0), jax.random.key(0)
        return sampler.denoise(*given, steps=7)

    def unet(z: jax.Array) -> jax.Array:
        two = lambda x: jnp.concatenate([x, x])  # noqa: E731
        variables = {"params": params["unet"]}
        return sampler.unet.apply(
            variables, two(z), jnp.zeros(2, jnp.int32), two(text), [two(f) for f in features]
        )

    assert total_flops(count_products(step, z)) == total_flops(count_products(unet, z))


def test_pose_encoder_runs_once_and_text_twice(
    loaded: tuple, poses: np.ndarray, monkeypatch: pytest.MonkeyPatch
):
    calls = {"encode_pose": 0, "encode_text": 0}
    for name in calls:
        original = getattr(FollowYourPosePipeline, name)

        def counted(*args: Any, name: str = name, original: Any = original) -> Any:
            calls[name] += 1
            return original(*args)

        monkeypatch.setattr(FollowYourPosePipeline, name, counted)
    make(loaded, poses)
    assert calls == {"encode_pose": 1, "encode_text": 2}


def test_guidance_is_linear_and_one_batch(loaded: tuple):
    sampler, params, _ = loaded
    config, key = sampler.unet.config, jax.random.key(0)
    z = jax.random.normal(key, (1, 2, 8, 8, sampler.unet.config.in_channels))
    text, negative = jax.random.normal(key, (2, 1, 77, config.cross_attention_dim))
    batches: list[int] = []

    class Counted(UNet3D):
        def __call__(self, latents: jax.Array, *rest: Any) -> jax.Array:
            batches.append(len(latents))
            return super().__call__(latents, *rest)

    unet = Counted(config)

    @jax.jit
    def predict(guidance: jax.Array) -> jax.Array:
        return cfg_denoiser(unet, params["unet"], text, negative, None, guidance)(z, jnp.int32(500))

    only_negative, only_text, double = (predict(jnp.float32(g)) for g in (0, 1, 2))
    assert batches == [2]
    assert jnp.abs(only_text - only_negative).max() > 1e-3
    np.testing.assert_allclose(double, 2 * only_text - only_negative, atol=1e-4)


def test_guidance_on_the_pose_leaves_it_out_of_the_negative_half(loaded: tuple):
    """As two calls would have it: the prompt with the pose, and the negative prompt without."""
    sampler, params, _ = loaded
    config, key = sampler.unet.config, jax.random.key(0)
    z = jax.random.normal(key, (1, 2, 8, 8, config.in_channels))
    text, negative = jax.random.normal(key, (2, 1, 77, config.cross_attention_dim))
    skeleton = jax.random.uniform(key, (1, 2, 64, 64, 3))
    features = sampler.encode_pose(params, skeleton)

    @functools.partial(jax.jit, static_argnames="pose_guidance")
    def predict(pose_guidance: bool) -> jax.Array:
        call = cfg_denoiser(sampler.unet, params["unet"], text, negative, features, 3.0, pose_guidance)
        return call(z, jnp.int32(500))

    @jax.jit
    def one(text: jax.Array, poses: list[jax.Array] | None) -> jax.Array:
        return sampler.unet.apply({"params": params["unet"]}, z, jnp.array([500]), text, poses)

    without, posed = one(negative, None), one(negative, features)
    with_text = one(text, features)
    np.testing.assert_allclose(predict(True), without + 3 * (with_text - without), atol=1e-3)
    np.testing.assert_allclose(predict(False), posed + 3 * (with_text - posed), atol=1e-3)
    assert jnp.abs(predict(True) - predict(False)).max() > 1e-2


def test_devices_that_share_a_clip_make_the_same_one(tmp_path: Path):
    """Each half of guidance, and each two frames, on a device of their own; parameters in shares."""
    config = dataclasses.replace(MINI, pose=PoseConfig(frames=4), pose_guidance=True)
    poses = np.asarray(jax.random.uniform(jax.random.key(0), (4, 64, 64, 3)))
    videos, held = [], []
    for mesh in (MeshConfig(data=1), MeshConfig(data=2, frame=2)):
        sampler, params, record = load_sampler(dataclasses.replace(config, mesh=mesh))
        videos.append(
            sampler(params, "A robot", poses, steps=2, guidance=3.0, pose_guidance=True).astype(int)
        )
        shards = [leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(params)]
        held.append((sum(shards), record["crc32"]))
    assert np.abs(videos[0] - videos[1]).max() <= 1  # rounding
    assert held[1][0] < held[0][0] / 3
    assert held[0][1] == held[1][1]


@pytest.mark.parametrize(("frames", "on_a_device"), [(8, 2), (6, 3)])
def test_frames_that_do_not_meet_are_shared_over_all_devices(loaded: tuple, frames: int, on_a_device: int):
    """Six frames on two by two devices cannot be: there the two halves of guidance have the same ones."""
    sampler, _, _ = loaded
    mesh = make_mesh(MeshConfig(data=2, frame=2), jax.devices()[:4])
    seen = []

    def double(params: Any, clip: jax.Array) -> jax.Array:
        seen.append(clip.shape[1])
        return clip * params["factor"]

    shared = dataclasses.replace(sampler, mesh=mesh)._shard_over_frames(double, frames)
    clip = jnp.arange(float(frames)).reshape(1, frames)
    np.testing.assert_array_equal(shared({"factor": jnp.full((), 2.0)}, clip), 2 * clip)
    assert seen == [on_a_device]


@pytest.mark.parametrize(
    ("mesh", "said"),
    [
        (MeshConfig(data=2, frame=8), "mesh.data=2 mesh.frame=8 is 16 devices; there are 8"),
        (MeshConfig(data=1, frame=3), "pose.frames=8 is not a multiple of mesh.frame=3"),
    ],
)
def test_devices_that_cannot_share_a_clip(mesh: MeshConfig, said: str):
    with pytest.raises(UserError, match=said):
        load_sampler(dataclasses.replace(MINI, mesh=mesh, pose=PoseConfig(frames=8)))


@pytest.mark.parametrize("shared", [0.0, 0.5, 1.0])
def test_frames_share_as_much_of_the_noise_as_they_are_told_to(shared: float):
    """All frames remain standard normal; the correlation of two is the share."""
    z = np.asarray(prepare_latents(jax.random.key(0), (1, 3, 64, 64, 4), shared))[0]
    together = np.cov(z.reshape(3, -1))
    np.testing.assert_allclose(together, shared + (1 - shared) * np.eye(3), atol=0.04)


def test_memory_of_decoding_does_not_grow_with_the_clip(loaded: tuple):
    sampler, params, _ = loaded

    def temporaries(frames: int) -> int:
        latents = jnp.zeros((1, frames, 16, 16, sampler.unet.config.in_channels))
        decode = jax.jit(lambda p, z: sampler.frozen.decode_latents(p, z, 2))
        return decode.lower(params, latents).compile().memory_analysis().temp_size_in_bytes

    few, many = temporaries(4), temporaries(32)
    video = 28 * 128 * 128 * 3 * 4  # of the frames that 32 has more, in bytes
    assert many - few < 3 * video, f"{few} bytes for 4 frames, {many} for 32"


def test_bfloat16_halves_the_weights(loaded: tuple):
    _, params, record = load_sampler(dataclasses.replace(MINI, dtype="bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(params["unet"])} == {jnp.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in jax.tree.leaves(params["vae"])} == {jnp.dtype(jnp.float32)}
    assert record["parameters"] == loaded[2]["parameters"]
    assert record["crc32"] != loaded[2]["crc32"]


def test_checksum_sees_a_single_bit(loaded: tuple):
    _, params, record = loaded
    assert checksum(params) == record["crc32"]
    conv_out = params["unet"]["conv_out"]
    changed = conv_out | {"bias": conv_out["bias"].at[0].set(1e-30)}
    assert checksum(params | {"unet": params["unet"] | {"conv_out": changed}}) != record["crc32"]


def test_without_weights():
    with pytest.raises(UserError, match="no trained weights.*import_pytorch"):
        load_sampler(dataclasses.replace(MINI, random_init=False, pretrained="sd14"))
    with pytest.raises(UserError, match="nowhere: no such folder"):
        load_sampler(dataclasses.replace(MINI, random_init=False, checkpoint="nowhere"))


def test_models_that_do_not_fit(loaded: tuple, tmp_path: Path):
    sampler, _, _ = loaded
    other = dataclasses.replace(sampler.unet.config, cross_attention_dim=48)
    with pytest.raises(UserError, match="text width 48 against 64"):
        dataclasses.replace(sampler, unet=UNet3D(other))
