"""A clip of a batch is the clip made alone, whatever the devices, the size of the batch and the order."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest

import tiny_models
from conftest import slow
from fyp_jax.pipeline.clip_batches import BatchSampler, ClipRequest
from fyp_jax.pipeline.params import SamplingParams, sampling_params
from fyp_jax.pipeline.pipeline import FollowYourPosePipeline

pytestmark = pytest.mark.slow  # seconds each; .ci/run runs them

SIDE, FRAMES = 64, 3


def release(*values: Any) -> Any:
    """Values of a parametrized test that only a release runs."""
    return pytest.param(*values, marks=pytest.mark.release)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> FollowYourPosePipeline:
    config = tiny_models.sample_config(
        tmp_path_factory.mktemp("tiny"),
        prompt=["a robot"],
        num_frames=FRAMES,
        height=SIDE,
        width=SIDE,
        num_inference_steps=2,
    )
    return FollowYourPosePipeline.from_config(config)


def requests(sampling: SamplingParams, count: int, pose: bool = True) -> list[ClipRequest]:
    """Clips that differ in prompt, negative prompt, pose, seed, guidance scale and noise."""
    rng = np.random.default_rng(0)
    return [
        ClipRequest(
            f"a robot number {i}",
            rng.integers(0, 256, (sampling.num_frames, SIDE, SIDE, 3), np.uint8) if pose else None,
            dataclasses.replace(
                sampling, seed=i, guidance_scale=1.5 + i, negative_prompt="a dog" * i, noise_correlation=i / 8
            ),
        )
        for i in range(count)
    ]


def assert_made_alone(pipeline: FollowYourPosePipeline, made: list[Any], asked: list[ClipRequest]) -> None:
    assert len(made) == len(asked)
    for output, request in zip(made, asked, strict=True):
        alone = pipeline(request.prompt, request.pose_images, request.sampling)
        scale = np.abs(alone.latents).max()
        assert np.abs(output.latents - alone.latents).max() < 1e-5 * scale
        assert np.abs(output.frames.astype(int) - alone.frames).max() <= 1
        assert output.pose_images is request.pose_images


@pytest.mark.parametrize("pose", [False, slow(True)])
def test_clips_of_a_frame_equal_those_made_alone(pipeline: FollowYourPosePipeline, pose: bool):
    """With poses and without are two shapes: each has a program of its own."""
    sampling = dataclasses.replace(
        sampling_params(pipeline.defaults), num_frames=1, num_inference_steps=1, decode_chunk_size=1
    )
    asked = requests(sampling, 3, pose)[1:]
    assert_made_alone(pipeline, BatchSampler(pipeline, jax.devices()[:2])(asked), asked)


@pytest.mark.parametrize(
    ("count", "devices", "clips_per_device", "changes"),
    [
        release(3, 2, 2, {}),  # the last place is filled up
        release(2, 2, 1, {"eta": 0.7}),
        release(2, 2, 1, {"num_frames": 7, "window": 3}),
        release(4, 2, 2, {"num_frames": 7, "window": 3, "solver": "unipc"}),
        release(8, 8, 1, {"solver": "dpm++2m", "pose_guidance": True}),
        release(5, 8, 4, {}),
    ],
)
def test_clips_of_a_batch_equal_those_made_alone(
    pipeline: FollowYourPosePipeline, count: int, devices: int, clips_per_device: int, changes: dict[str, Any]
):
    sampling = dataclasses.replace(sampling_params(pipeline.defaults), **changes)
    asked = requests(sampling, count)
    sampler = BatchSampler(pipeline, jax.devices()[:devices])
    assert_made_alone(pipeline, sampler(asked, clips_per_device), asked)


@pytest.mark.release
def test_clips_of_text_alone_equal_those_made_alone_in_any_order(pipeline: FollowYourPosePipeline):
    asked = requests(sampling_params(pipeline.defaults), 3, pose=False)
    sampler = BatchSampler(pipeline, jax.devices()[:4])
    assert_made_alone(pipeline, sampler(asked), asked)
    assert_made_alone(pipeline, sampler(asked[::-1]), asked[::-1])


def test_clips_of_two_shapes_are_no_batch(pipeline: FollowYourPosePipeline):
    sampling = sampling_params(pipeline.defaults)
    two = [*requests(sampling, 1), *requests(dataclasses.replace(sampling, num_frames=2), 1)]
    sampler = BatchSampler(pipeline, jax.devices()[:2])
    with pytest.raises(ValueError, match="of one shape"):
        sampler(two)
    with pytest.raises(ValueError, match="at most 2"):
        sampler(requests(sampling, 3))
