"""Pipeline folders that Follow Your Pose and Tune-A-Video save after training: read, imported, trained on."""

import json
import logging
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

import tiny_models
from cli_utils import SCRIPTS, Run, assert_mistake, assert_same, run_script
from conftest import FIXTURES, slow
from fyp_jax.checkpoints.inference import inference_shapes, load_inference, save_inference
from fyp_jax.convert.followyourpose_checkpoint import read_followyourpose
from fyp_jax.convert.lazy import LazyArray
from fyp_jax.convert.pipeline_folder import PipelineFolder
from fyp_jax.convert.recognise import FATEZERO, FATEZERO_ARRAYS, describe_arrays
from fyp_jax.convert.torch_files import read_weights
from fyp_jax.convert.torch_key_mapping import POSE_PREFIX, to_torch, tuneavideo_to_torch
from fyp_jax.convert.video_pipeline import read_video_pipeline
from fyp_jax.errors import UserError
from fyp_jax.models.random_params import random_params
from fyp_jax.models.unet import unet_shapes
from fyp_jax.models.unet_config import UNet3DConfig
from fyp_jax.pipeline.pipeline import FollowYourPosePipeline
from fyp_jax.training.config import TrainConfig
from fyp_jax.training.init import initialize_weights
from fyp_jax.training.stages import get_stage
from fyp_jax.trees import TreeMismatch

pytestmark = pytest.mark.slow  # seconds each; .ci/run runs them

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


@pytest.mark.parametrize(("stage", "frames"), [("pose", None), ("motion", 8)])
def test_reinit_makes_only_the_named_model_anew(saved: Saved, stage: str, frames: int | None):
    config = TrainConfig(stage=stage, pretrained=str(saved.folder), reinit=["unet"])
    state = initialize_weights(config, get_stage(stage), frame_axis=None)
    found, expected = state.trainable | state.frozen, flatten_dict(saved.params, sep="/")
    kept = [path for path in expected if path.startswith("pose_encoder/")]
    for path in kept:
        np.testing.assert_array_equal(found[path], expected[path], err_msg=path)
    assert not np.array_equal(found["unet/conv_in/kernel"], expected["unet/conv_in/kernel"])
    assert state.provenance.get("num_frames") == frames, "no clip has trained the new UNet yet"


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


# ---- export to Tune-A-Video


@pytest.fixture
def imported(tune_a_video: Path, tmp_path: Path) -> Path:
    """The Tune-A-Video pipeline as a checkpoint of ours."""
    run = run_script(
        SCRIPTS / "import_pytorch.py", "--pipeline", tune_a_video, "--out", tmp_path / "imported"
    )
    assert run.status == 0, run.err
    return tmp_path / "imported"


def export(checkpoint: Path, out: Path, *arguments: object) -> Run:
    return run_script(
        SCRIPTS / "export_pytorch.py", "--checkpoint", checkpoint, "--out", out, "--format", *arguments
    )


def with_changes(checkpoint: Path, out: Path, changes: Callable[[str, np.ndarray], np.ndarray]) -> Path:
    """A checkpoint whose arrays `changes(path, x)` has changed."""
    config, params, provenance = load_inference(checkpoint)
    flat = {path: changes(path, np.asarray(x)) for path, x in flatten_dict(params, sep="/").items()}
    save_inference(out, 0, config, unflatten_dict(flat, sep="/"), provenance)
    return out


def test_tune_a_video_round_trip_is_bitwise(tune_a_video: Path, imported: Path, tmp_path: Path):
    run = export(imported, tmp_path / "exported", "tuneavideo")
    assert run.status == 0, run.err
    theirs = load_file(tune_a_video / "unet" / UNET_FILE)
    assert_same(read_weights(tmp_path / "exported" / "unet" / "diffusion_pytorch_model.bin"), theirs)
    config = json.loads((tmp_path / "exported" / "unet" / "config.json").read_text())
    assert {name: config.get(name) for name in ("_class_name", "down_block_types", "up_block_types")} == {
        name: VIDEO_CONFIG[name] for name in ("_class_name", "down_block_types", "up_block_types")
    }
    assert config.get("mid_block_type", "UNetMidBlock3DCrossAttn") == "UNetMidBlock3DCrossAttn"
    again = read_video_pipeline(PipelineFolder(str(tmp_path / "exported")))
    assert again is not None
    assert_same(again[1], {"unet": load_inference(imported)[1]["unet"]})


def test_tune_a_video_export_verifies(imported: Path, tmp_path: Path):
    run = export(imported, tmp_path / "exported", "tuneavideo", "--verify")
    assert run.status == 0, run.err
    for output in (
        "checksums of arrays",
        "names and config keys for diffusers",
        "noise of a clip, read back",
    ):
        assert re.search(rf"largest relative error [0-9.e+-]+ in {output}", run.out), run.out


@pytest.mark.parametrize("size", ["small", slow("sd14")])
def test_arrays_of_a_tune_a_video_export_are_the_published_ones(size: str):
    """They are those of Follow Your Pose's UNet without its temporal convolutions and pose encoder."""
    layout = json.loads((FIXTURES / f"{size}_layout.json").read_text())
    published = {
        name: tuple(shape)
        for name, shape in layout["state_dict"].items()
        if ".conv_temporal." not in name and not name.startswith(POSE_PREFIX)
    }
    shapes = unet_shapes(UNet3DConfig(**layout["config"]))
    lazy = jax.tree.map(lambda x: LazyArray(x.shape, np.dtype(np.float32), lambda: np.zeros(x.shape)), shapes)
    assert {name: x.shape for name, x in tuneavideo_to_torch(lazy).items()} == published
    assert len(published) == {"small": 796, "sd14": 798}[size]


def test_export_that_would_lose_temporal_convolutions_is_refused(imported: Path, tmp_path: Path):
    trained = with_changes(
        imported,
        tmp_path / "trained",
        lambda path, x: x + 1 if path.endswith("conv_temporal/up/kernel") else x,
    )
    run = export(trained, tmp_path / "exported", "tuneavideo")
    assert_mistake(
        run, "tuneavideo: this model has no temporal convolutions, but those of the checkpoint are"
    )
    assert not (tmp_path / "exported").exists()


def test_export_that_would_lose_the_pose_encoder_needs_a_format_that_keeps_it(imported: Path, tmp_path: Path):
    trained = with_changes(
        imported, tmp_path / "trained", lambda path, x: x + 1 if path == "pose_encoder/conv_in/bias" else x
    )
    run = export(trained, tmp_path / "exported", "tuneavideo")
    assert_mistake(
        run, "tuneavideo: this model has no pose encoder", "to keep it, add one of diffusers-t2i-adap"
    )
    run = export(trained, tmp_path / "exported", "tuneavideo", "diffusers-t2i-adapter")
    assert run.status == 0, run.err


# ---- FateZero


def test_fatezero_is_refused_by_name(tune_a_video: Path, tmp_path: Path):
    file = tune_a_video / "unet" / "config.json"
    fatezero = {
        "_class_name": "UNetPseudo3DConditionModel",
        "down_block_types": ["CrossAttnDownBlockPseudo3D", "DownBlockPseudo3D"],
        "up_block_types": ["UpBlockPseudo3D", "CrossAttnUpBlockPseudo3D"],
    }
    file.write_text(json.dumps(json.loads(file.read_text()) | fatezero))
    state = load_file(tune_a_video / "unet" / UNET_FILE)
    renamed = {name.replace("_temp.", "_temporal."): x for name, x in state.items()}
    renamed["conv_in.conv_temporal.down.weight"] = np.zeros((2, 16, 3), np.float32)
    save_unet(tune_a_video, renamed)
    words = "FateZero's UNet, with a convolution in time behind every convolution in space"
    with pytest.raises(UserError, match=words):
        FollowYourPosePipeline.from_pretrained(tune_a_video)
    script = SCRIPTS / "import_pytorch.py"
    assert_mistake(run_script(script, "--pipeline", tune_a_video, "--out", tmp_path / "out"), words)
    config = TrainConfig(pretrained=str(tune_a_video))
    with pytest.raises(UserError, match=words):
        initialize_weights(config, get_stage("motion"), frame_axis=None)
    assert FATEZERO in str(describe_arrays(renamed))


def test_fatezero_checkpoint_beside_a_pipeline_is_refused_by_name(tmp_path: Path):
    """The pattern does not take Follow Your Pose's own temporal convolutions for FateZero's."""
    (tmp_path / "unet").mkdir()
    arrays = {"conv_in.conv_temporal.down.weight": np.zeros((2, 16, 3), np.float32)}
    save_unet(tmp_path, arrays)
    with pytest.raises(UserError, match=r"unet: FateZero's UNet"):
        read_followyourpose(tmp_path / "unet", None, tiny_models.UNET)
    ours = json.loads((FIXTURES / "small_layout.json").read_text())["state_dict"]
    assert not any(re.search(FATEZERO_ARRAYS, name) for name in ours)
