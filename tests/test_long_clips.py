"""Clips of more frames than a window: windows, their blending, their noise, and clips of a tiny model."""

import collections
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tiny_models
from fyp_jax.errors import UserError
from fyp_jax.models.execution import ExecutionConfig
from fyp_jax.models.random_params import random_params
from fyp_jax.models.unet import UNet3D, unet_shapes
from fyp_jax.parallel.config import MeshConfig
from fyp_jax.parallel.mesh import AXES, make_mesh, shard_params
from fyp_jax.pipeline.config import SampleConfig
from fyp_jax.pipeline.guidance import predict_windows
from fyp_jax.pipeline.noise import prepare_latents
from fyp_jax.pipeline.pipeline import FollowYourPosePipeline
from fyp_jax.pipeline.windows import make_windows, shuffled_frames, van_der_corput, window_starts

pytestmark = pytest.mark.slow  # seconds each; .ci/run runs them

WINDOW, FRAMES, SIDE = 4, 10, 64
PROMPT = "a robot"


@pytest.mark.parametrize(
    ("frames", "window", "overlap"), [(96, 8, 0), (24, 8, 4), (9, 8, 0), (10, 4, 3), (5, 1, 0)]
)
def test_windows_cover_each_frame_and_their_weights_sum_to_1(frames: int, window: int, overlap: int):
    for index in range(9):
        starts = window_starts(frames, window, overlap, index)
        assert starts[0] == 0
        assert starts[-1] == frames - window
        assert len(set(starts)) == len(starts)
        assert max(np.diff(starts)) <= window - overlap
        windows = make_windows(frames, window, overlap, index, group=4)
        total = np.zeros(frames)
        for start, weights in zip(windows.starts.ravel(), windows.weights.reshape(-1, window), strict=True):
            total[start : start + window] += weights
        np.testing.assert_allclose(total, 1, rtol=1e-5)


def test_seams_of_one_step_are_inside_of_windows_of_the_next():
    for index in range(20):
        before, after = (window_starts(96, 8, 0, i) for i in (index, index + 1))
        assert not set(before[1:-1]) & set(after[1:-1])


def test_each_place_of_a_clip_is_a_seam_equally_often():
    starts = [window_starts(96, 8, 0, index) for index in range(8)]
    seams = collections.Counter(start for step in starts for start in step)
    assert {seams[i] for i in range(1, 88)} == {1}
    assert sum(map(len, starts)) / 8 < 13, "96 frames cost at most 13 windows a step"


def test_van_der_corput_sequence():
    assert [van_der_corput(i) for i in range(8)] == [0, 1 / 2, 1 / 4, 3 / 4, 1 / 8, 5 / 8, 3 / 8, 7 / 8]


def test_frames_in_the_middle_of_a_window_weigh_most():
    windows = make_windows(12, 8, 4, 0, group=1)
    assert windows.starts.ravel().tolist() == [0, 4]
    np.testing.assert_allclose(windows.weights[1, 0], [1 / 5, 2 / 5, 3 / 5, 4 / 5, 1, 1, 1, 1])


def test_noise_of_a_long_clip_begins_as_that_of_a_window_and_has_the_same_frames_in_another_order():
    key, shape = jax.random.key(0), (1, FRAMES, 8, 8, 4)
    short = np.asarray(prepare_latents(key, (1, WINDOW, 8, 8, 4), 0.3, WINDOW))
    long = np.asarray(prepare_latents(key, shape, 0.3, WINDOW))
    np.testing.assert_array_equal(long[:, :WINDOW], short)
    order = shuffled_frames(jax.random.fold_in(key, 2), FRAMES, WINDOW)
    np.testing.assert_array_equal(long, short[:, order])
    assert sorted(order[WINDOW : 2 * WINDOW]) == list(range(WINDOW))
    blocks = shuffled_frames(key, 400, 8).reshape(-1, 8)
    assert len({tuple(block) for block in blocks}) > 40, "each block has an order of its own"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> SampleConfig:
    return tiny_models.sample_config(
        tmp_path_factory.mktemp("tiny"),
        prompt=[PROMPT],
        num_frames=FRAMES,
        window=WINDOW,
        height=SIDE,
        width=SIDE,
        num_inference_steps=2,
    )


@pytest.fixture(scope="module")
def pipeline(config: SampleConfig) -> FollowYourPosePipeline:
    return FollowYourPosePipeline.from_config(config)


def skeletons(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (FRAMES, SIDE, SIDE, 3), np.uint8)


@pytest.fixture(scope="module")
def latents(pipeline: FollowYourPosePipeline) -> np.ndarray:
    return pipeline(PROMPT, skeletons()).latents


def test_first_frame_reaches_all_windows_and_the_last_frame_only_its_own(
    pipeline: FollowYourPosePipeline, latents: np.ndarray
):
    """Frame 0 is the key frame of every window. The last window begins at frame 6 in both steps."""
    noise_key, _ = jax.random.split(jax.random.key(0))
    noise = np.array(prepare_latents(noise_key, (1, FRAMES, 8, 8, 4), 0.0, WINDOW))[0]
    np.testing.assert_array_equal(pipeline(PROMPT, skeletons(), latents=noise).latents, latents)
    for changed, reached in ((0, range(FRAMES)), (FRAMES - 1, range(6, FRAMES))):
        other = noise.copy()
        other[changed] += 1
        found = pipeline(PROMPT, skeletons(), latents=other).latents
        differs = np.abs(found - latents).max(axis=(1, 2, 3)) > 1e-5
        assert np.flatnonzero(differs).tolist() == list(reached)


def test_each_frame_follows_its_own_pose(pipeline: FollowYourPosePipeline, latents: np.ndarray):
    other = skeletons()
    other[-1] = 0
    found = pipeline(PROMPT, other).latents
    differs = np.abs(found - latents).max(axis=(1, 2, 3)) > 1e-5
    assert differs[-1]
    assert not differs[:4].any()


def test_window_of_the_whole_clip_is_the_clip_in_one_piece(pipeline: FollowYourPosePipeline):
    """No window program runs, so the result is that of a pipeline without windows, bit for bit."""
    programs = pipeline.programs
    assert programs.window(pipeline.defaults) == WINDOW
    assert programs.window(dataclasses.replace(pipeline.defaults, window=None)) == 8, "as trained"
    short, four = skeletons()[:4], dict[str, Any](num_frames=4)
    without = pipeline(PROMPT, short, window=None, **four)
    np.testing.assert_array_equal(pipeline(PROMPT, short, window=4, **four).latents, without.latents)


def test_predictions_of_windows_are_those_of_the_unet_with_frame_0_of_the_clip():
    """A clip whose frames are all alike: a window with the key frame is the window at the clip's start."""
    unet = UNet3D(tiny_models.UNET)
    params = random_params(unet_shapes(tiny_models.UNET), seed=0)
    keys = jax.random.split(jax.random.key(0), 3)
    z = jnp.repeat(jax.random.normal(keys[0], (1, 1, 8, 8, 4)), WINDOW, axis=1)
    text, negative = (jax.random.normal(key, (1, 7, 8)) for key in keys[1:])
    call = jax.jit(
        lambda z, key: predict_windows(
            unet, params, z, jnp.int32(500), text, negative, None, 2.0, key_frame=key
        )
    )
    first, key_frame = call(z, None)
    again, same = call(z, key_frame)
    np.testing.assert_allclose(again, first, atol=1e-5)
    assert same.keys() == key_frame.keys()
    assert len(key_frame) == 4, "one for each cross-frame attention"
    other, _ = call(z, jax.tree.map(lambda x: x + 1, key_frame))
    assert np.abs(other - first).max() > 1e-3

    mesh = make_mesh(MeshConfig(data=2, frame=2), jax.devices()[:4])
    sharded = shard_params(params, mesh, AXES)
    both = jnp.concatenate([z, z + 1])
    on_one = jax.jit(lambda z: predict_windows(unet, params, z, jnp.int32(500), text, negative, None, 2.0))(
        both
    )
    framed = UNet3D(tiny_models.UNET, ExecutionConfig(frame_axis="frame"))
    on_mesh = jax.jit(
        lambda p, z: predict_windows(framed, p, z, jnp.int32(500), text, negative, None, 2.0, mesh=mesh)
    )(sharded, both)
    np.testing.assert_allclose(on_mesh[0], on_one[0], atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), on_mesh[1], on_one[1])


@pytest.mark.release
def test_mesh_of_windows_makes_the_same_clip(config: SampleConfig, latents: np.ndarray):
    for mesh in (MeshConfig(data=3), MeshConfig(data=2, frame=2)):
        found = FollowYourPosePipeline.from_config(dataclasses.replace(config, mesh=mesh), use_cache=True)
        np.testing.assert_allclose(found(PROMPT, skeletons()).latents, latents, atol=1e-4)


@pytest.mark.usefixtures("cache_folder")
@pytest.mark.parametrize("solver", ["ddim", "unipc"])
def test_compiled_programs_make_the_same_clip(
    config: SampleConfig, pipeline: FollowYourPosePipeline, solver: str
):
    changed = dataclasses.replace(config, solver=solver)
    compiled = FollowYourPosePipeline.from_config(changed, use_cache=True)
    assert {"add_key_window", "add_windows", "solve"} <= set(compiled.programs.compiled)
    expected = pipeline(PROMPT, skeletons(), solver=solver)
    np.testing.assert_array_equal(compiled(PROMPT, skeletons()).frames, expected.frames)


def test_inversion_of_a_long_clip_leads_back_to_it(pipeline: FollowYourPosePipeline):
    clip = pipeline(PROMPT, skeletons())
    source, steps = pipeline.encode(clip.frames), dict[str, Any](num_inference_steps=8)
    found = pipeline.invert(clip.frames, PROMPT, pose=skeletons(), **steps)
    options: dict[str, Any] = {"guidance_scale": 1.0, **steps}
    again = pipeline(PROMPT, skeletons(), latents=found, **options)
    from_noise = pipeline(PROMPT, skeletons(), **options)
    errors = [np.abs(x.latents - source).mean() for x in (again, from_noise)]
    assert errors[0] < 0.3 * errors[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": 0}, "window=0 must be at least 1"),
        ({"window": 4, "window_overlap": 4}, "window_overlap=4 is not between 0 and window - 1"),
        ({"window": None, "window_overlap": 9}, "window_overlap=9 is not less than window=8"),
    ],
)
def test_windows_that_cannot_be_are_refused(pipeline: FollowYourPosePipeline, changes: dict, message: str):
    with pytest.raises(UserError, match=message):
        pipeline(PROMPT, **changes)


def test_mesh_that_does_not_fit_the_windows_is_refused(pipeline: FollowYourPosePipeline):
    def on_mesh(data: int, frame: int) -> Any:
        mesh = make_mesh(MeshConfig(data=data, frame=frame), jax.devices()[: data * frame])
        return dataclasses.replace(pipeline.programs, mesh=mesh)

    with pytest.raises(UserError, match="window=4 is not a multiple of mesh.frame=8"):
        on_mesh(1, 8).check(pipeline.defaults)
    short = dataclasses.replace(pipeline.defaults, num_frames=4)
    with pytest.raises(UserError, match="mesh.data=4: a clip of 4 frames is one window"):
        on_mesh(4, 1).check(short)
    on_mesh(4, 2).check(pipeline.defaults)
    SampleConfig(prompt=["a"], num_frames=96, mesh=MeshConfig(data=4)).check()
