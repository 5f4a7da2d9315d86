"""Pipeline folders that Follow Your Pose and Tune-A-Video save after training: read, imported, trained on."""

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

import tiny_models
from cli_utils import SCRIPTS, assert_mistake, assert_same, run_script
from fyp_jax.checkpoints.inference import inference_shapes, load_inference
from fyp_jax.convert.pipeline_folder import PipelineFolder
from fyp_jax.convert.torch_key_mapping import POSE_PREFIX, to_torch
from fyp_jax.convert.video_pipeline import read_video_pipeline
from fyp_jax.errors import UserError
from fyp_jax.models.random_params import random_params
from fyp_jax.pipeline.pipeline import FollowYourPosePipeline
from fyp_jax.training.config import TrainConfig
from fyp_jax.training.init import initialize_weights
from fyp_jax.training.stages import get_stage
from fyp_jax.trees import TreeMismatch

UNET_FILE = "diffusion_pytorch_model.safetensors"
VIDEO_CONFIG = {
    "_class_name": "UNet3DConditionModel",
    "down_block_types": ["CrossAttnDownBlock3D", "DownBlock3D"],
    "mid_block_type": "UNetMidBlock3DCrossAttn",
    "up_block_types": ["UpBlock3D", "CrossAttnUpBlock3D"],
    "only_cross_attention": False,
    "resnet_time_scale_shift": "default",
}


class Saved(NamedTuple):
    folder: Path
    params: dict[str, Any]
    """UNet and pose encoder in it."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """As Follow Your Pose's training ends: the pose encoder is in the UNet's file."""
    folder = tmp_path_factory.mktemp("video")
    base = tiny_models.write_weights(tiny_models.write_pipeline(folder / "configs"), folder / "base")
    params = jax.tree.map(np.asarray, random_params(inference_shapes(tiny_models.UNET), seed=7))
    save_unet(base, to_torch(params))
    config = json.loads((base / "unet" / "config.json").read_text())
    (base / "unet" / "config.json").write_text(json.dumps(config | VIDEO_CONFIG))
    index = {"_class_name": "FollowYourPosePipeline", "unet": ["models", "UNet3DConditionModel"]}
    (base / "model_index.json").write_text(json.dumps(index))
    return Saved(base, params)


def save_unet(folder: Path, state_dict: Mapping[str, np.ndarray]) -> None:
    arrays = {name: np.ascontiguousarray(x) for name, x in state_dict.items()}
    save_file(arrays, folder / "unet" / UNET_FILE)


@pytest.fixture
def tune_a_video(saved: Saved, tmp_path: Path) -> Path:
    """As Tune-A-Video's training ends: neither pose encoder nor temporal convolutions."""
    folder = shutil.copytree(saved.folder, tmp_path / "tune_a_video")
    state = load_file(folder / "unet" / UNET_FILE)
    state = {k: x for k, x in state.items() if not k.startswith(POSE_PREFIX) and ".conv_temporal." not in k}
    biases = [name for name in state if name.endswith("attn_temp.to_out.0.bias")]
    save_unet(folder, state | {name: state[name] + 1 for name in biases})
    return folder


def test_trained_folder_is_sampled_from(saved: Saved):
    pipeline = FollowYourPosePipeline.from_pretrained(saved.folder)
    assert_same({part: pipeline.params[part] for part in saved.params}, saved.params)


def test_trained_folder_is_imported_bitwise(saved: Saved, tmp_path: Path):
    out = tmp_path / "out"
    run = run_script(SCRIPTS / "import_pytorch.py", "--pipeline", saved.folder, "--out", out)
    assert run.status == 0, run.err
    assert "untrained" not in run.out
    config, params, _ = load_inference(out)
    assert config.down_block_types == ("CrossAttnDownBlock2D", "DownBlock2D")
    assert_same(params, saved.params)


def test_pose_encoder_beside_the_unet_is_read(saved: Saved, tmp_path: Path):
    folder = shutil.copytree(saved.folder, tmp_path / "split")
    state = load_file(folder / "unet" / UNET_FILE)
    pose = {k.removeprefix(POSE_PREFIX): x for k, x in state.items() if k.startswith(POSE_PREFIX)}
    save_unet(folder, {k: x for k, x in state.items() if not k.startswith(POSE_PREFIX)})
    found = read_video_pipeline(PipelineFolder(str(folder)))
    assert found is not None
    assert "pose_encoder" not in found[1]
    save_file(pose, folder / "pose_encoder.safetensors")
    found = read_video_pipeline(PipelineFolder(str(folder)))
    assert found is not None
    assert_same(found[1], saved.params)


def test_tune_a_video_gets_convolutions_that_change_nothing(
    tune_a_video: Path, saved: Saved, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.WARNING):
        pipeline = FollowYourPosePipeline.from_pretrained(tune_a_video)
    assert "has no pose encoder, so poses have no effect" in caplog.text
    expected = flatten_dict(saved.params["unet"], sep="/")
    for path, x in flatten_dict(pipeline.params["unet"], sep="/").items():
        if path.endswith("conv_temporal/up/kernel"):
            assert not np.any(x), f"{path} changes the clip"
        elif "conv_temporal" not in path:
            added = path.endswith("attn_temp/to_out_0/bias")
            np.testing.assert_array_equal(x, expected[path] + added, err_msg=path)


@pytest.mark.parametrize("stage", ["pose", "motion"])
def test_training_starts_from_the_trained_temporal_layers(tune_a_video: Path, saved: Saved, stage: str):
    """They are not initialised again, though the last kernel of each is 0."""
    config = TrainConfig(stage=stage, pretrained=str(tune_a_video))
    state = initialize_weights(config, get_stage(stage), frame_axis=None)
    expected = flatten_dict(saved.params["unet"], sep="/")
    found = {path: x for path, x in (state.trainable | state.frozen).items() if "attn_temp/to_q" in path}
    assert found
    for path, x in found.items():
        np.testing.assert_array_equal(x, expected[path.removeprefix("unet/")], err_msg=path)
    assert {"unet", "pose_encoder"} <= set(state.saved_models)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("down_blocks.0.temp_convs.0.conv1.0.weight", "the text-to-video UNet of ModelScope"),
        ("down_blocks.0.motion_modules.0.norm.weight", "a UNet of AnimateDiff"),
    ],
)
def test_other_video_unets_of_the_same_class_are_named(saved: Saved, tmp_path: Path, name: str, words: str):
    folder = shutil.copytree(saved.folder, tmp_path / "other")
    save_unet(folder, load_file(folder / "unet" / UNET_FILE) | {name: np.zeros(2, np.float32)})
    with pytest.raises(UserError, match=words):
        FollowYourPosePipeline.from_pretrained(folder)
    run = run_script(SCRIPTS / "import_pytorch.py", "--pipeline", folder, "--out", tmp_path / "out")
    assert_mistake(run, words)


def test_missing_array_of_a_video_unet_is_named(saved: Saved, tmp_path: Path):
    folder = shutil.copytree(saved.folder, tmp_path / "other")
    state = load_file(folder / "unet" / UNET_FILE)
    lost = next(name for name in state if "attn_temp.to_q" in name)
    save_unet(folder, {name: x for name, x in state.items() if name != lost})
    with pytest.raises(TreeMismatch, match=f"video UNet: 1 missing \\({lost}\\)"):
        read_video_pipeline(PipelineFolder(str(folder)))
