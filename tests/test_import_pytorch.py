"""PyTorch weights become a checkpoint, which is read back from the disk."""

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

import tiny_models
from cli_utils import SCRIPTS, Run, assert_mistake, assert_same, run_script
from conftest import Reference, fill_torch, synthesise
from fyp_jax.checkpoints.inference import inference_shapes, load_inference, save_inference
from fyp_jax.checkpoints.manager import CheckpointError
from fyp_jax.cli import sample
from fyp_jax.console import run_cli
from fyp_jax.convert.followyourpose_checkpoint import read_followyourpose
from fyp_jax.convert.torch_files import WeightsError
from fyp_jax.convert.torch_key_mapping import POSE_PREFIX, to_torch
from fyp_jax.errors import UserError
from fyp_jax.models.pose_encoder import PoseEncoder
from fyp_jax.models.unet import UNet3DConfig
from fyp_jax.trees import TreeMismatch

pytestmark = pytest.mark.slow  # seconds each; .ci/run runs them

SCRIPT = SCRIPTS / "import_pytorch.py"
PROVENANCE = {"made_by": "a test"}

TINY = UNet3DConfig(
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    block_out_channels=(16, 32),
    layers_per_block=1,
    cross_attention_dim=24,
    attention_head_dim=2,
    norm_num_groups=8,
)


def import_pytorch(*args: object) -> Run:
    return run_script(SCRIPT, *args)


def save_torch(state_dict: Mapping[str, np.ndarray], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({name: torch.from_numpy(array.copy()) for name, array in state_dict.items()}, file)


def split_pose(state_dict: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The UNet alone, and the pose encoder as `pose_encoder.pth` holds it, without its prefix."""
    pose = {name: array for name, array in state_dict.items() if name.startswith(POSE_PREFIX)}
    unet = {name: array for name, array in state_dict.items() if name not in pose}
    return unet, {name.removeprefix(POSE_PREFIX): array for name, array in pose.items()}


def write_base_pipeline(folder: Path, config: UNet3DConfig) -> Path:
    """A whole pipeline of random weights, whose UNet has this config."""
    return tiny_models.write_weights(tiny_models.write_pipeline(folder / "configs", config), folder / "base")


@pytest.fixture(scope="module")
def tiny() -> dict[str, Any]:
    """{"unet": ..., "pose_encoder": ...} of TINY."""
    shapes = flatten_dict(inference_shapes(TINY), sep="/")
    return unflatten_dict({path: synthesise(path, leaf.shape) for path, leaf in shapes.items()}, sep="/")


@pytest.fixture(scope="module")
def tiny_torch(tiny: dict[str, Any]) -> dict[str, np.ndarray]:
    return to_torch(tiny)


@pytest.fixture(scope="module")
def tiny_checkpoint(tiny: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with step 5. Tests copy it before they change it."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    save_inference(folder, 5, TINY, tiny, PROVENANCE)
    return folder


# ---- import_pytorch.py on published checkpoints


def test_import_of_published_checkpoint_is_bitwise(reference: Reference, tmp_path: Path):
    """The UNet's file holds the pose encoder, and the same pose encoder is in a file beside it."""
    sizes, out = write_base_pipeline(tmp_path / "pipeline", reference.config), tmp_path / "out"
    save_torch(reference.state_dict, tmp_path / "checkpoint-7" / "pytorch_model.bin")
    save_torch(split_pose(reference.state_dict)[1], tmp_path / "pose_encoder.pth")
    run = import_pytorch(
        "--pipeline", sizes, "--checkpoint", tmp_path / "checkpoint-7", "--out", out, "--step", 7
    )
    assert run.status == 0, run.err
    assert "step 7" in run.out
    config, params, provenance = load_inference(out)
    assert config == reference.config
    assert_same(params, reference.params)
    assert provenance["step"] == 7
    assert provenance["checkpoint"] == str(tmp_path / "checkpoint-7")


@pytest.mark.release
def test_imported_pipeline_can_be_sampled(
    pipeline_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Import, then sample.py, as in the README. A text encoder of another width is refused."""
    out = tmp_path / "checkpoint"
    assert import_pytorch("--pipeline", pipeline_folder, "--out", out).status == 0
    (tmp_path / "sample.yaml").write_text("num_inference_steps: 2\nheight: 64\nwidth: 64\nnum_frames: 2\n")
    command = ["sample.py", "--config", str(tmp_path / "sample.yaml"), "--prompt", "a robot"]
    command += [f"checkpoint={out}", f"output_dir={tmp_path / 'runs'}"]
    monkeypatch.setattr(sys, "argv", [*command, f"pretrained={pipeline_folder}"])
    assert run_cli(sample.main) == 0
    record = json.loads((tmp_path / "runs" / "0000" / "00-a-robot.json").read_text())
    assert record["weights"]["checkpoint"] == str(out)
    assert record["weights"]["provenance"]["pipeline"] == str(pipeline_folder)
    assert (tmp_path / "runs" / "0000" / "config.yaml").is_file()
    assert "random" not in capsys.readouterr().out

    other = shutil.copytree(pipeline_folder, tmp_path / "other")
    wider = CLIPTextConfig.from_pretrained(other / "text_encoder", hidden_size=48)
    CLIPTextModel(wider).save_pretrained(other / "text_encoder")
    monkeypatch.setattr(sys, "argv", [*command, f"pretrained={other}"])
    assert run_cli(sample.main) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "does not fit" in line
    assert "text width 32 against 48" in line


def test_import_of_checkpoint_with_other_sizes_lists_the_shapes(
    tiny_torch: dict[str, np.ndarray], tmp_path: Path
):
    """The script runs in a process of its own, to check what a user sees."""
    sizes = write_base_pipeline(
        tmp_path / "pipeline", UNet3DConfig(**TINY.to_json() | {"cross_attention_dim": 32})
    )
    save_torch(tiny_torch, tmp_path / "checkpoint-7" / "pytorch_model.bin")
    args = ["--pipeline", sizes, "--checkpoint", tmp_path / "checkpoint-7", "--out", tmp_path / "out"]
    command = [sys.executable, SCRIPT, *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    run = Run(done.returncode, done.stdout, done.stderr)
    assert_mistake(run, "wrong shape", "attn2.to_k.weight is (16, 24)")
    assert not (tmp_path / "out").exists()


def test_import_without_any_pose_encoder_is_refused(tiny_torch: dict[str, np.ndarray], tmp_path: Path):
    sizes = write_base_pipeline(tmp_path / "pipeline", TINY)
    save_torch(split_pose(tiny_torch)[0], tmp_path / "checkpoint-7" / "pytorch_model.bin")
    run = import_pytorch(
        "--pipeline", sizes, "--checkpoint", tmp_path / "checkpoint-7", "--out", tmp_path / "out"
    )
    assert_mistake(run, "no pose encoder", str(tmp_path / "checkpoint-7"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("checkpoint-7", "no such folder"),
        ("pipeline/base/unet/config.json", "not a diffusers pipeline folder"),
        ("checkpoint-7/x", "no weights"),
    ],
)
def test_import_with_missing_input_names_it(tmp_path: Path, missing: str, said: str):
    write_base_pipeline(tmp_path / "pipeline", TINY)
    (tmp_path / "checkpoint-7").mkdir()
    path = tmp_path / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    run = import_pytorch(
        "--pipeline",
        tmp_path / "pipeline" / "base",
        "--checkpoint",
        tmp_path / "checkpoint-7",
        "--out",
        tmp_path / "out",
    )
    assert_mistake(run, said)


@pytest.fixture
def tiny_args(tiny_torch: dict[str, np.ndarray], tmp_path: Path) -> tuple[object, ...]:
    """Arguments of the script for a published checkpoint of TINY, without `--out`."""
    save_torch(tiny_torch, tmp_path / "checkpoint-7" / "pytorch_model.bin")
    sizes = write_base_pipeline(tmp_path / "pipeline", TINY)
    return "--pipeline", sizes, "--checkpoint", tmp_path / "checkpoint-7", "--step", 5


def test_existing_step_is_not_overwritten(
    tiny_args: tuple[object, ...], tiny: dict[str, Any], tiny_checkpoint: Path, tmp_path: Path
):
    """Another step can be added, and the latest step is read."""
    out = shutil.copytree(tiny_checkpoint, tmp_path / "out")
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    assert_mistake(import_pytorch(*tiny_args, "--out", out), "step 5 exists already")
    assert {file: file.read_bytes() for file in out.rglob("*") if file.is_file()} == before
    other = unflatten_dict({path: leaf + 1 for path, leaf in flatten_dict(tiny, sep="/").items()}, sep="/")
    save_inference(out, 40, TINY, other, PROVENANCE)
    _, params, provenance = load_inference(out)
    assert provenance == {**PROVENANCE, "step": 40}
    assert_same(params, other)


def test_import_to_a_file_is_refused(tiny_args: tuple[object, ...], tmp_path: Path):
    (tmp_path / "out").write_text("precious")
    assert_mistake(import_pytorch(*tiny_args, "--out", tmp_path / "out"), str(tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "precious"


# ---- what sampling will need is checked before anything is written


def break_scheduler(folder: Path) -> None:
    (folder / "scheduler" / "scheduler_config.json").write_text('{"beta_schedule": "sigmoid"}')


def break_text_width(folder: Path) -> None:
    file = folder / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"cross_attention_dim": 32}))


def break_vae(folder: Path) -> None:
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    arrays = load_file(file)
    save_file({name: x for name, x in arrays.items() if name != "decoder.conv_out.bias"}, file)


BROKEN = {
    "no VAE": (lambda folder: shutil.rmtree(folder / "vae"), "vae"),
    "no weights of the VAE": (
        lambda folder: (folder / "vae" / "diffusion_pytorch_model.safetensors").unlink(),
        "no weights",
    ),
    "an array of the VAE is missing": (break_vae, "vae: 1 missing (decoder.conv_out.bias)"),
    "no text encoder": (lambda folder: shutil.rmtree(folder / "text_encoder"), "text_encoder"),
    "no vocabulary": (lambda folder: (folder / "tokenizer" / "vocab.json").unlink(), "no CLIP tokenizer"),
    "no scheduler": (lambda folder: shutil.rmtree(folder / "scheduler"), "scheduler_config.json"),
    "another scheduler": (break_scheduler, "beta_schedule='sigmoid' is not supported"),
    "another text width": (break_text_width, "wrong shape"),
}


@pytest.fixture(scope="module")
def whole_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base_pipeline(tmp_path_factory.mktemp("whole"), TINY)


IN_DEFAULT_RUN = ("an array of the VAE is missing", "no vocabulary", "another scheduler")


@pytest.mark.parametrize(
    "kind", [pytest.param(x, marks=() if x in IN_DEFAULT_RUN else pytest.mark.slow) for x in BROKEN]
)
def test_import_checks_all_that_sampling_needs_before_it_writes(
    whole_pipeline: Path, tmp_path: Path, kind: str
):
    folder = shutil.copytree(whole_pipeline, tmp_path / "pipeline")
    damage, message = BROKEN[kind]
    damage(folder)
    assert_mistake(import_pytorch("--pipeline", folder, "--out", tmp_path / "out"), message)
    assert not (tmp_path / "out").exists()


def test_import_of_checkpoint_whose_pipeline_has_another_text_width_is_refused(
    tiny_torch: dict[str, np.ndarray], tmp_path: Path
):
    """The UNet's config fits the checkpoint, but not the text encoder beside it."""
    save_torch(tiny_torch, tmp_path / "checkpoint-7" / "pytorch_model.bin")
    wider = UNet3DConfig(**TINY.to_json() | {"cross_attention_dim": 32})
    folder = write_base_pipeline(tmp_path / "pipeline", wider)
    (folder / "unet" / "config.json").write_text(json.dumps(TINY.to_json()))
    args = ["--pipeline", folder, "--checkpoint", tmp_path / "checkpoint-7", "--out", tmp_path / "out"]
    assert_mistake(import_pytorch(*args), "text width 24 against 32")
    assert not (tmp_path / "out").exists()


# ---- published checkpoints: which pose encoder is read


@pytest.fixture
def checkpoint_7(tiny_torch: dict[str, np.ndarray], tmp_path: Path) -> Path:
    """A published checkpoint with the UNet alone."""
    save_torch(split_pose(tiny_torch)[0], tmp_path / "checkpoint-7" / "pytorch_model.bin")
    return tmp_path / "checkpoint-7"


@pytest.mark.parametrize(
    ("place", "prefix"),
    [("pose_encoder.pth", ""), ("../pose_encoder.pth", ""), ("pose_encoder.pth", POSE_PREFIX)],
)
def test_pose_encoder_in_folder_or_beside_it_is_found(
    checkpoint_7: Path, tiny: dict[str, Any], tiny_torch: dict[str, np.ndarray], place: str, prefix: str
):
    pose = {prefix + name: array for name, array in split_pose(tiny_torch)[1].items()}
    save_torch(pose, checkpoint_7 / place)
    assert_same(read_followyourpose(checkpoint_7, None, TINY), tiny)


def test_pose_encoder_in_folder_comes_before_the_one_beside_it(
    checkpoint_7: Path, tiny: dict[str, Any], tiny_torch: dict[str, np.ndarray]
):
    pose = split_pose(tiny_torch)[1]
    save_torch(pose, checkpoint_7 / "pose_encoder.pth")
    save_torch({name: array + 1 for name, array in pose.items()}, checkpoint_7.parent / "pose_encoder.pth")
    assert_same(read_followyourpose(checkpoint_7, None, TINY), tiny)


@pytest.mark.parametrize("named", [False, True], ids=["found", "named"])
@pytest.mark.parametrize("different", [False, True])
def test_separate_pose_encoder_replaces_the_one_in_the_unet_file(
    checkpoint_7: Path,
    tiny: dict[str, Any],
    tiny_torch: dict[str, np.ndarray],
    caplog: pytest.LogCaptureFixture,
    different: bool,
    named: bool,
):
    """A warning names the separate file only if the two pose encoders differ."""
    save_torch(tiny_torch, checkpoint_7 / "pytorch_model.bin")
    file = checkpoint_7.parent / ("elsewhere/my_encoder.pth" if named else "pose_encoder.pth")
    pose = split_pose(tiny_torch)[1]
    if different:
        pose["conv_in.bias"] = pose["conv_in.bias"] + 1
    save_torch(pose, file)
    with caplog.at_level(logging.WARNING):
        params = read_followyourpose(checkpoint_7, file if named else None, TINY)
    expected = tiny["pose_encoder"]["conv_in"]["bias"] + np.float32(different)
    np.testing.assert_array_equal(params["pose_encoder"]["conv_in"]["bias"], expected)
    assert_same({"unet": params["unet"]}, {"unet": tiny["unet"]})
    warnings = [record.getMessage() for record in caplog.records if record.name.startswith("fyp_jax")]
    assert [str(file) in text for text in warnings] == [True] * different, warnings


def test_missing_pose_encoder_file_is_named(checkpoint_7: Path):
    with pytest.raises(WeightsError, match=r"mine\.pth: no such file"):
        read_followyourpose(checkpoint_7, Path("mine.pth"), TINY)


def test_incomplete_pose_encoder_file_is_refused(checkpoint_7: Path, tiny_torch: dict[str, np.ndarray]):
    """A missing array is not read from the UNet's file instead."""
    save_torch(tiny_torch, checkpoint_7 / "pytorch_model.bin")
    pose = split_pose(tiny_torch)[1]
    del pose["body.3.block2.bias"]
    save_torch(pose, checkpoint_7 / "pose_encoder.pth")
    with pytest.raises(
        TreeMismatch, match=r"pose encoder: 1 missing \(skeleton_adapter\.body\.3\.block2\.bias"
    ):
        read_followyourpose(checkpoint_7, None, TINY)


# ---- a pipeline alone


@pytest.fixture(scope="module")
def image_unet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline with an image UNet of TINY's size."""
    sizes = TINY.to_json()
    del sizes["zero_init_temporal"], sizes["cross_frame_attention"]
    unet = diffusers.UNet2DConditionModel(**sizes)
    fill_torch(unet)
    folder = write_base_pipeline(tmp_path_factory.mktemp("image_unet"), TINY)
    shutil.rmtree(folder / "unet")
    unet.save_pretrained(folder / "unet")
    return folder


def test_imported_pipeline_has_untrained_pose_encoder_with_zero_maps(image_unet: Path, tmp_path: Path):
    run = import_pytorch("--pipeline", image_unet, "--out", tmp_path / "out", "--seed", 3)
    assert run.status == 0, run.err
    assert "pose encoder is untrained" in run.out
    config, params, provenance = load_inference(tmp_path / "out")
    assert config.block_out_channels == TINY.block_out_channels
    assert provenance["step"] == 0
    state_dict = to_torch(params)
    for name, array in load_file(image_unet / "unet" / "diffusion_pytorch_model.safetensors").items():
        np.testing.assert_array_equal(state_dict[name], array, err_msg=name)
    skeleton = jax.random.uniform(jax.random.key(0), (1, 2, 32, 16, 3))
    maps = jax.jit(lambda pose: PoseEncoder(config).apply({"params": pose}, skeleton))(params["pose_encoder"])
    assert [leaf.shape for leaf in maps] == [(1, 2, 4, 2, 16), (1, 2, 2, 1, 32)]
    assert not any(np.any(leaf) for leaf in maps), "an untrained pose encoder changes the image"
    assert np.any(params["pose_encoder"]["body_0"]["block1"]["kernel"]), (
        "no gradient reaches the input convolution"
    )


def test_pose_encoder_alone_is_read(tiny: dict[str, Any], tiny_torch: dict[str, np.ndarray], tmp_path: Path):
    """The script reads it in this way for a pipeline whose UNet is inflated."""
    save_torch(split_pose(tiny_torch)[1], tmp_path / "mine.pth")
    params = read_followyourpose(None, tmp_path / "mine.pth", TINY)
    assert_same(params, {"pose_encoder": tiny["pose_encoder"]})


# ---- checkpoints


def test_load_inference_casts_to_dtype(tiny: dict[str, Any], tiny_checkpoint: Path, tmp_path: Path):
    """From float32 to bfloat16 values are rounded once; from bfloat16 to float32 they do not change."""
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tiny)
    assert_same(load_inference(tiny_checkpoint, jnp.bfloat16)[1], half)
    save_inference(tmp_path / "half", 0, TINY, half, PROVENANCE)
    whole = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), half)
    assert_same(load_inference(tmp_path / "half")[1], whole)


def test_save_inference_with_parameters_of_another_config_is_refused(tiny: dict[str, Any], tmp_path: Path):
    wider = UNet3DConfig(**TINY.to_json() | {"cross_attention_dim": 32})
    with pytest.raises(TreeMismatch, match="attn2/to_k/kernel"):
        save_inference(tmp_path / "out", 0, wider, tiny, PROVENANCE)
    with pytest.raises(TreeMismatch, match=r"missing .*pose_encoder/"):
        save_inference(tmp_path / "out", 0, TINY, {"unet": tiny["unet"]}, PROVENANCE)
    assert not (tmp_path / "out").exists()


def test_load_inference_with_shapes_that_differ_from_the_config_is_refused(
    tiny_checkpoint: Path, tmp_path: Path
):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "changed")
    file = folder / "5" / "config" / "metadata"
    saved = json.loads(file.read_text())
    saved["unet"]["cross_attention_dim"] = 32
    del saved["checksums"]  # a step of an earlier version
    file.write_text(json.dumps(saved))
    shutil.rmtree(folder / "5" / "checksums")
    with pytest.raises(TreeMismatch, match=r"changed, step 5: .*attn2/to_k/kernel is \(24, 16\) but"):
        load_inference(folder)


@pytest.mark.parametrize("lost", ["inference", "config", "config/metadata", "inference/_METADATA", "."])
def test_load_inference_of_incomplete_step_names_it(tiny_checkpoint: Path, tmp_path: Path, lost: str):
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "broken")
    path = folder / "5" / lost
    assert path.exists(), "Orbax does not write this"
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    (folder / "5").mkdir(exist_ok=True)
    with pytest.raises(CheckpointError, match=f"^{folder}: step 5 ") as caught:
        load_inference(folder)
    assert "\n" not in str(caught.value)


def test_load_inference_of_folder_without_steps_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match="no such folder"):
        load_inference(tmp_path / "none")
    (tmp_path / "latest").mkdir()
    with pytest.raises(UserError, match=f"^{tmp_path}: no checkpoint in it"):
        load_inference(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="file: no such folder"):
        load_inference(tmp_path / "file")
