"""Checkpoints are exported to formats that PyTorch opens, and imported again."""

import functools
import json
import pickle
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    StableDiffusionAdapterPipeline,
    StableDiffusionPipeline,
    T2IAdapter,
    UNet2DConditionModel,
)
from einops import rearrange
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

from cli_utils import SCRIPTS, Run, assert_mistake, assert_same, run_script
from conftest import FIXTURES, Reference, fill_torch, slow, synthesise, tagged
from fyp_jax.checkpoints.inference import inference_shapes, load_inference, open_inference, save_inference
from fyp_jax.checkpoints.manager import CheckpointError
from fyp_jax.checkpoints.training import TrainingCheckpoints
from fyp_jax.cli import export_pytorch as export_command
from fyp_jax.convert.encoder_names import flax_vae_name
from fyp_jax.convert.export_formats import EXPORT_FORMATS
from fyp_jax.convert.lazy import Weights, read_tree, to_lazy_tree
from fyp_jax.convert.pipeline_folder import PipelineFolder
from fyp_jax.convert.published_code import (
    CONFIG_KEYS,
    for_published_code,
    names_not_taken,
    warn_of_sizes,
)
from fyp_jax.convert.t2i_adapter import t2i_plan
from fyp_jax.convert.torch_files import find_weights, read_weights
from fyp_jax.convert.torch_key_mapping import POSE_PREFIX, image_unet_to_torch
from fyp_jax.convert.verify import TOLERANCE, verify
from fyp_jax.convert.weight_writer import MANIFEST, ExportPlan, WeightWriter
from fyp_jax.diffusion import ddim
from fyp_jax.models.execution import ExecutionConfig
from fyp_jax.models.pose_encoder import PoseEncoder, init_pose_encoder, pose_encoder_shapes
from fyp_jax.models.random_params import random_params
from fyp_jax.models.unet import TEMPORAL, UNet3D, UNet3DConfig
from fyp_jax.parallel.config import MeshConfig
from fyp_jax.parallel.mesh import make_mesh, shard_params
from fyp_jax.pipeline.guidance import cfg_denoiser

pytestmark = pytest.mark.slow  # seconds each; .ci/run runs them

STEP = 7
FORMATS = [name for name in EXPORT_FORMATS if name != "tuneavideo"]
"""Those that have all layers of a motion stage (the other one: tests/test_video_pipeline.py)."""
PROMPT = "a robot dances on the moon"
NUM_INFERENCE_STEPS, GUIDANCE_SCALE = 5, 7.5

export_pytorch: Callable[..., Run] = functools.partial(run_script, SCRIPTS / "export_pytorch.py")
import_pytorch: Callable[..., Run] = functools.partial(run_script, SCRIPTS / "import_pytorch.py")


def without_temporal(unet: dict[str, Any]) -> dict[str, Any]:
    """The parameters with 0 for all temporal layers, which then have no effect."""
    flat = flatten_dict(unet, sep="/")
    return unflatten_dict({path: 0 * x if TEMPORAL.search(path) else x for path, x in flat.items()}, sep="/")


def spatial(unet: dict[str, Any]) -> dict[str, Any]:
    """The parameters that an image model has, by path."""
    return {path: x for path, x in flatten_dict(unet, sep="/").items() if not TEMPORAL.search(path)}


@pytest.fixture(scope="module")
def config(pipeline_folder: Path) -> UNet3DConfig:
    return PipelineFolder(str(pipeline_folder)).unet_config()


@pytest.fixture(scope="module")
def params(config: UNet3DConfig) -> dict[str, Any]:
    """Parameters without zeros, so that every array has an effect."""
    flat = flatten_dict(inference_shapes(config), sep="/")
    return unflatten_dict({path: synthesise(path, leaf.shape) for path, leaf in flat.items()}, sep="/")


@pytest.fixture(scope="module")
def checkpoint(
    config: UNet3DConfig,
    params: dict[str, Any],
    pipeline_folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A checkpoint with step 7 of a motion stage."""
    folder = tmp_path_factory.mktemp("checkpoints") / "motion"
    save_inference(folder, STEP, config, params, {"stage": "motion", "pretrained": str(pipeline_folder)})
    return folder


@pytest.fixture(scope="module")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an export in each format that has all of these weights."""
    out = tmp_path_factory.mktemp("exported") / "out"
    run = export_pytorch("--checkpoint", checkpoint, "--out", out, "--format", *FORMATS)
    assert run.status == 0, run.err
    return out


def assert_close(found: Any, expected: Any, what: str) -> None:
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape, f"{what}: {found.shape}, PyTorch has {expected.shape}"
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error < 1e-4, f"{what}: relative error {error:.1e}"


# ---- round trips


@pytest.mark.parametrize(
    ("form", "max_shard_size"),
    [
        slow("followyourpose", "300KB"),
        slow("followyourpose", "10GB"),
        ("followyourpose-safetensors", "10GB"),
        slow("followyourpose-safetensors", "300KB"),
    ],
)
def test_followyourpose_round_trip_is_bitwise(
    checkpoint: Path,
    config: UNet3DConfig,
    params: dict[str, Any],
    tmp_path: Path,
    form: str,
    max_shard_size: str,
):
    """The import needs nothing but the export, which holds the pipeline too."""
    out = tmp_path / "out"
    args = "--checkpoint", checkpoint, "--out", out, "--format", form, "--max-shard-size", max_shard_size
    assert export_pytorch(*args).status == 0
    assert (len(list((out / f"checkpoint-{STEP}").iterdir())) > 1) == (max_shard_size != "10GB")
    back = "--checkpoint", out / f"checkpoint-{STEP}", "--pipeline", out / "stable-diffusion"
    assert import_pytorch(*back, "--out", tmp_path / "again", "--step", STEP).status == 0
    found, again, _ = load_inference(tmp_path / "again")
    assert found == config
    assert_same(again, params)


def test_native_round_trip_is_bitwise(
    exported: Path, config: UNet3DConfig, params: dict[str, Any], tmp_path: Path
):
    """The import needs no pipeline, and keeps the provenance."""
    run = import_pytorch("--checkpoint", exported / "safetensors", "--out", tmp_path / "again")
    assert run.status == 0, run.err
    found, again, provenance = load_inference(tmp_path / "again")
    assert found == config
    assert provenance["stage"] == "motion"
    assert_same(again, params)


def test_diffusers_formats_round_trip_is_bitwise(exported: Path, params: dict[str, Any], tmp_path: Path):
    """They hold the UNet without temporal layers, and the pose encoder."""
    adapter, pipeline = exported / "diffusers-t2i-adapter", exported / "diffusers-unet2d"
    run = import_pytorch("--pipeline", pipeline, "--pose-encoder", adapter, "--out", tmp_path / "again")
    assert run.status == 0, run.err
    _, again, _ = load_inference(tmp_path / "again")
    assert_same(again["pose_encoder"], params["pose_encoder"])
    assert_same(spatial(again["unet"]), spatial(params["unet"]))


@pytest.mark.parametrize("form", ["followyourpose/stable-diffusion", "diffusers-unet2d"])
@pytest.mark.parametrize("part", ["vae", "text_encoder"])
def test_export_has_the_encoders_of_the_pipeline(exported: Path, pipeline_folder: Path, form: str, part: str):
    found, expected = (read_weights(find_weights(x / part)) for x in (exported / form, pipeline_folder))
    if part == "vae" and form.startswith("followyourpose"):
        expected = {flax_vae_name(name): x for name, x in expected.items()}
        assert any(name.endswith(".attentions.0.proj_attn.weight") for name in expected)
    assert_same(found, expected)


def test_followyourpose_export_has_the_names_and_config_keys_of_diffusers_0_11_1(
    exported: Path, tmp_path: Path
):
    """diffusers 0.11.1 itself does not run beside the libraries of today."""
    folder = exported / "followyourpose" / "stable-diffusion"
    assert list(names_not_taken(folder)) == []
    configs = {name: json.loads((folder / name).read_text()) for name in CONFIG_KEYS}
    assert configs["unet/config.json"]["_diffusers_version"] == "0.11.1"
    assert "mid_block_type" not in configs["unet/config.json"]
    assert set(names_not_taken(exported / "diffusers-unet2d")) >= {
        "vae/config.json: use_quant_conv",
        "vae: decoder.mid_block.attentions.0.to_q.weight",
    }


def test_export_for_the_published_code_says_what_it_does_not_do(caplog: pytest.LogCaptureFixture):
    warn_of_sizes("followyourpose", UNet3DConfig(layers_per_block=1))
    assert "poses would not steer there" in caplog.text
    assert "opens no other sizes than Stable Diffusion 1.4's" in caplog.text
    config = {"in_channels": 3, "scaling_factor": 0.13, "force_upcast": True, "use_quant_conv": True}
    plan = for_published_code(ExportPlan([], {"vae/config.json": json.dumps(config)}))
    assert json.loads(plan.text_files["vae/config.json"]) == {"in_channels": 3, "scaling_factor": 0.13}
    says = "vae/config.json: the published code (diffusers 0.11.1) ignores scaling_factor=0.13"
    assert says in caplog.text
    assert "force_upcast" not in caplog.text
    assert "use_quant_conv" not in caplog.text


def test_sizes_of_stable_diffusion_1_4_need_no_warning(caplog: pytest.LogCaptureFixture):
    warn_of_sizes("followyourpose", UNet3DConfig())
    assert caplog.text == ""


def test_followyourpose_export_equals_the_published_state_dict(
    reference: Reference, pipeline_folder: Path, tmp_path: Path
):
    """Names, shapes and values are equal. The names in the pose encoder's own file have no prefix."""
    save_inference(tmp_path / "checkpoint", 3, reference.config, reference.params, {})
    args = "--checkpoint", tmp_path / "checkpoint", "--out", tmp_path / "out", "--pipeline", pipeline_folder
    run = export_pytorch(*args, "--format", "followyourpose")
    assert run.status == 0, run.err
    layout = json.loads((FIXTURES / "small_layout.json").read_text())["state_dict"]
    whole = torch.load(tmp_path / "out" / "checkpoint-3" / "pytorch_model.bin", weights_only=True)
    assert {name: list(tensor.shape) for name, tensor in whole.items()} == layout
    assert_same({name: x.numpy() for name, x in whole.items()}, reference.state_dict)
    pose = torch.load(tmp_path / "out" / "pose_encoder.pth", weights_only=True)
    expected = {name: x for name, x in whole.items() if name.startswith(POSE_PREFIX)}
    assert sorted(POSE_PREFIX + name for name in pose) == sorted(expected)
    assert all(torch.equal(x, expected[POSE_PREFIX + name]) for name, x in pose.items())


def test_manifest_has_provenance_and_checksums(exported: Path, checkpoint: Path, config: UNet3DConfig):
    for form in FORMATS:
        manifest = json.loads((exported / form / MANIFEST).read_text())
        assert (manifest["format"], manifest["step"], manifest["dtype"]) == (form, STEP, "float32")
        assert manifest["checkpoint"] == str(checkpoint)
        assert UNet3DConfig.from_json(manifest["config"]) == config
        assert "jax" in manifest["versions"]
        assert all("crc32" in entry for arrays in manifest["files"].values() for entry in arrays.values())


def test_export_prints_a_table_of_files(checkpoint: Path, params: dict[str, Any], tmp_path: Path):
    out = tmp_path / "out"
    run = export_pytorch("--checkpoint", checkpoint, "--out", out, "--format", "safetensors")
    rows = [line.split() for line in run.out.splitlines()][1:]
    for model, (name, arrays, parameters, size) in zip(("pose_encoder", "unet"), sorted(rows), strict=True):
        leaves = flatten_dict(params[model], sep="/").values()
        assert Path(name) == out / f"{model}.safetensors"
        assert (int(arrays), int(parameters)) == (len(leaves), sum(leaf.size for leaf in leaves))
        assert int(size) == Path(name).stat().st_size
    assert "100%" in run.err, "no progress bar"


# ---- in PyTorch


@pytest.fixture(scope="module")
def adapter(exported: Path) -> Any:
    adapter, info = T2IAdapter.from_pretrained(exported / "diffusers-t2i-adapter", output_loading_info=True)
    assert not any(info.values()), info
    return adapter


@pytest.mark.parametrize("form", [slow("followyourpose/stable-diffusion"), slow("diffusers-unet2d")])
def test_exported_unet_in_pytorch_predicts_the_same_noise(
    exported: Path, config: UNet3DConfig, params: dict[str, Any], form: str
):
    """No key is missing or unexpected, and the noise of one frame is the same."""
    use_safetensors = form == "diffusers-unet2d"
    unet, info = UNet2DConditionModel.from_pretrained(
        exported / form / "unet", output_loading_info=True, use_safetensors=use_safetensors
    )
    assert not any(info.values()), info
    latents, text = tagged("latents", (2, 1, 8, 16, 4)), tagged("text", (2, 7, 32))
    with torch.no_grad():
        image = torch.from_numpy(rearrange(latents, "b 1 h w c -> b c h w").copy())
        expected = unet(image, 501, torch.from_numpy(text)).sample
    apply = jax.jit(lambda p, *inputs: UNet3D(config, ExecutionConfig()).apply({"params": p}, *inputs))
    found = apply(without_temporal(params["unet"]), latents, jnp.full(2, 501), text)
    assert_close(rearrange(np.asarray(found), "b 1 h w c -> b c h w"), expected, "noise")


def test_exported_adapter_in_pytorch_gives_the_same_features(
    adapter: Any, config: UNet3DConfig, params: dict[str, Any]
):
    skeleton = np.random.default_rng(0).random((2, 3, 64, 128, 3)).astype(np.float32)
    compare_maps(adapter, config, params["pose_encoder"], skeleton)


def compare_maps(adapter: Any, config: UNet3DConfig, params: dict[str, Any], skeleton: np.ndarray) -> None:
    with torch.no_grad():
        expected = adapter(torch.from_numpy(rearrange(skeleton, "b f h w c -> (b f) c h w").copy()))
    found = jax.jit(lambda p, x: PoseEncoder(config).apply({"params": p}, x))(params, skeleton)
    for i, (x, y) in enumerate(zip(found, expected, strict=True)):
        assert_close(rearrange(np.asarray(x), "b f h w c -> (b f) c h w"), y, f"map {i}")


def test_adapter_of_sd14_size_has_the_default_config_of_pytorch(tmp_path: Path):
    """It has 77.4 M parameters."""
    config = UNet3DConfig()
    params = random_params({"pose_encoder": pose_encoder_shapes(config)}, seed=0)
    weights = Weights(config, to_lazy_tree(params), {})
    (written,) = WeightWriter().write_folder(t2i_plan(weights), tmp_path / "adapter", {})
    assert round(written.parameters / 1e6, 1) == 77.4
    adapter, info = T2IAdapter.from_pretrained(tmp_path / "adapter", output_loading_info=True)
    assert not any(info.values()), info
    defaults = {name: x for name, x in T2IAdapter().config.items() if not name.startswith("_")}
    assert {name: adapter.config[name] for name in defaults} == defaults
    skeleton = np.random.default_rng(0).random((1, 1, 64, 64, 3)).astype(np.float32)
    compare_maps(adapter, config, params["pose_encoder"], skeleton)


@pytest.mark.parametrize("with_adapter", [False, True], ids=["text alone", "with a pose"])
def test_sampling_in_pytorch_equals_ours_on_one_frame(
    exported: Path,
    adapter: Any,
    config: UNet3DConfig,
    params: dict[str, Any],
    pipeline_folder: Path,
    with_adapter: bool,
):
    """Five steps of PyTorch's pipelines, compared with our sampling without temporal layers."""
    pipeline = StableDiffusionPipeline.from_pretrained(exported / "diffusers-unet2d")
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    noise = tagged("noise", (1, 1, 8, 8, 4))
    skeleton = np.random.default_rng(0).random((1, 1, 64, 64, 3)).astype(np.float32)
    extra: dict[str, Any] = {}
    if with_adapter:
        parts = {name: part for name, part in pipeline.components.items() if name != "image_encoder"}
        pipeline = StableDiffusionAdapterPipeline(**parts, adapter=adapter, requires_safety_checker=False)
        extra = {"image": torch.from_numpy(rearrange(skeleton, "b 1 h w c -> b c h w").copy())}
    pipeline.set_progress_bar_config(disable=True)
    common = {
        "num_inference_steps": NUM_INFERENCE_STEPS,
        "guidance_scale": GUIDANCE_SCALE,
        "height": 64,
        "width": 64,
    }
    image = torch.from_numpy(rearrange(noise, "b 1 h w c -> b c h w").copy())
    expected = {
        kind: pipeline(PROMPT, latents=image, output_type=kind, **common, **extra).images
        for kind in ("latent", "np")
    }

    folder = PipelineFolder(str(pipeline_folder))
    models = folder.latent_encoders()
    encoder_params = folder.encoder_params(models)
    text, negative = (
        jax.jit(models.encode_text)(encoder_params, models.tokenize(prompt)[0]) for prompt in (PROMPT, "")
    )

    def run(unet: Any, pose: Any) -> tuple[Any, Any]:
        maps = PoseEncoder(config).apply({"params": pose}, jnp.asarray(skeleton)) if with_adapter else None
        denoise = cfg_denoiser(UNet3D(config, ExecutionConfig()), unet, text, negative, maps, GUIDANCE_SCALE)
        latents = ddim.sample(denoise, jnp.asarray(noise), NUM_INFERENCE_STEPS, folder.schedule())
        return latents, models.decode_latents(encoder_params, latents, chunk=1)

    latents, pixels = jax.jit(run)(without_temporal(params["unet"]), params["pose_encoder"])
    assert_close(rearrange(np.asarray(latents), "b 1 h w c -> b c h w"), expected["latent"], "latents")
    assert_close(np.clip(np.asarray(pixels)[:, 0] / 2 + 0.5, 0, 1), expected["np"], "pixels")


def test_imported_adapter_of_pytorch_gives_the_same_features(
    pipeline_folder: Path, config: UNet3DConfig, tmp_path: Path
):
    """The adapter is a `.bin` file, as published ones are. Its folder and its file can be given."""
    adapter = T2IAdapter(channels=list(config.block_out_channels))
    fill_torch(adapter)
    adapter.save_pretrained(tmp_path / "adapter", safe_serialization=False)
    skeleton = np.random.default_rng(0).random((1, 2, 64, 64, 3)).astype(np.float32)
    for i, name in enumerate(("adapter", "adapter/diffusion_pytorch_model.bin")):
        out = tmp_path / f"out{i}"
        args = "--pipeline", pipeline_folder, "--pose-encoder", tmp_path / name, "--out", out
        assert import_pytorch(*args).status == 0
        compare_maps(adapter, config, load_inference(out)[1]["pose_encoder"], skeleton)


# ---- checkpoints of training runs


def training_checkpoint(
    folder: Path, config: UNet3DConfig, inference: dict[str, Any], stage: str, pipeline: Path
) -> Path:
    saved_config = {"unet": config.to_json(), "provenance": {"stage": stage, "pretrained": str(pipeline)}}
    with TrainingCheckpoints(folder, max_to_keep=1) as checkpoints:
        train = {"step": jnp.zeros((), jnp.int32)}
        checkpoints.save(STEP, train=train, inference=inference, data={}, config=saved_config, loss=1.0)
    return folder


@pytest.mark.release
@pytest.mark.parametrize("stage", ["pose", "motion"])
def test_checkpoint_of_eight_devices_is_exported_on_one(
    config: UNet3DConfig, params: dict[str, Any], pipeline_folder: Path, tmp_path: Path, stage: str
):
    """Large arrays were sharded over eight devices; a process with one device reads them whole."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=8, frame=1))
    placed = unflatten_dict(shard_params(flatten_dict(params, sep="/"), mesh), sep="/")
    sharded = [x for x in flatten_dict(placed, sep="/").values() if not x.sharding.is_fully_replicated]
    assert len({shard.device for shard in sharded[0].addressable_shards}) == 8
    folder = training_checkpoint(tmp_path / "run", config, placed, stage, pipeline_folder)
    command = [
        sys.executable,
        SCRIPTS / "export_pytorch.py",
        "--checkpoint",
        folder,
        "--out",
        tmp_path / "out",
    ]
    done = subprocess.run(
        [*command, "--format", "followyourpose-safetensors"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "out" / MANIFEST).read_text())
    assert manifest["versions"]["device"].startswith("1 x ")
    file = tmp_path / "out" / f"checkpoint-{STEP}" / "model.safetensors"
    assert_same(load_file(file), {name: np.asarray(x) for name, x in all_names(params).items()})


def all_names(params: dict[str, Any]) -> dict[str, Any]:
    from fyp_jax.convert.torch_key_mapping import to_torch

    return to_torch(params)


def test_bfloat16_checkpoint_is_exported_as_float32(
    config: UNet3DConfig, params: dict[str, Any], pipeline_folder: Path, tmp_path: Path
):
    """A run can have frozen weights in bfloat16. Their values do not change."""
    unet = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params["unet"])
    mixed = {"unet": unet, "pose_encoder": params["pose_encoder"]}
    folder = training_checkpoint(tmp_path / "run", config, mixed, "pose", pipeline_folder)
    run = export_pytorch("--checkpoint", folder, "--out", tmp_path / "out", "--format", "safetensors")
    assert run.status == 0, run.err
    expected = {path: np.asarray(x, np.float32) for path, x in flatten_dict(unet, sep="/").items()}
    assert_same(load_file(tmp_path / "out" / "unet.safetensors"), expected)


@pytest.mark.parametrize("part", ["vae", "text_encoder"])
def test_trained_encoder_is_exported(
    config: UNet3DConfig, params: dict[str, Any], pipeline_folder: Path, tmp_path: Path, part: str
):
    """A pipeline gets it, which --verify runs in PyTorch, and so does the native format."""
    folder = PipelineFolder(str(pipeline_folder))
    original = folder.encoder_params(folder.latent_encoders())[part]
    trained = jax.tree.map(lambda x: 1.1 * x, original)
    inference = params | {part: trained}
    run_folder = training_checkpoint(tmp_path / "run", config, inference, "motion", pipeline_folder)
    args = (
        "--checkpoint",
        run_folder,
        "--out",
        tmp_path / "out",
        "--format",
        "diffusers-unet2d",
        "safetensors",
    )
    run = export_pytorch(*args, "--verify")
    assert run.status == 0, run
    written = PipelineFolder(str(tmp_path / "out" / "diffusers-unet2d"))
    assert_same(written.encoder_params(written.latent_encoders())[part], trained)
    again = tmp_path / "again"
    assert import_pytorch("--checkpoint", tmp_path / "out" / "safetensors", "--out", again).status == 0
    assert_same(load_inference(again)[1], inference)


def test_trained_encoder_of_another_size_is_refused(
    config: UNet3DConfig, params: dict[str, Any], pipeline_folder: Path, tmp_path: Path
):
    folder = PipelineFolder(str(pipeline_folder))
    text = folder.encoder_params(folder.latent_encoders())["text_encoder"]
    inference = params | {
        "text_encoder": {"text_model": {"final_layer_norm": text["text_model"]["final_layer_norm"]}}
    }
    run_folder = training_checkpoint(tmp_path / "run", config, inference, "motion", pipeline_folder)
    args = "--checkpoint", run_folder, "--out", tmp_path / "out", "--format", "diffusers-unet2d"
    assert_mistake(export_pytorch(*args), "the trained text encoder against", "missing")


# ---- dtypes, torch, verification


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float16", marks=pytest.mark.release), "bfloat16"])
def test_verify_accepts_every_format(checkpoint: Path, exported: Path, tmp_path: Path, dtype: str):
    """The script prints all comparisons, and exits with status 0."""
    out = tmp_path / "out"
    forms = "diffusers-t2i-adapter", "diffusers-unet2d", "safetensors", "followyourpose"
    run = export_pytorch(
        "--checkpoint", checkpoint, "--out", out, "--format", *forms, "--dtype", dtype, "--verify"
    )
    assert run.status == 0, run
    for output in ("pose features", "noise", "text embeddings", "pixels"):
        assert f"in {output} in PyTorch" in run.out
    dtypes = {str(x.dtype) for x in torch.load(out / "followyourpose" / "pose_encoder.pth").values()}
    assert dtypes == {f"torch.{dtype}"}


def test_verify_refuses_a_wrong_number(
    checkpoint: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """One array of a file is changed. The script exits with status 1 above the tolerance."""
    folder = shutil.copytree(exported / "diffusers-t2i-adapter", tmp_path / "adapter")
    file = folder / "diffusion_pytorch_model.safetensors"
    arrays = load_file(file)
    arrays["adapter.body.1.resnets.0.block1.bias"] += 1
    save_file(arrays, file)
    weights = open_inference(checkpoint)
    errors = {x.output: x.error for x in verify("diffusers-t2i-adapter", folder, weights, None, "float32")}
    assert errors["checksums of arrays"] > TOLERANCE
    assert errors["pose features in PyTorch"] > TOLERANCE
    monkeypatch.setattr(export_command, "TOLERANCE", 1e-12)
    args = "--checkpoint", checkpoint, "--out", tmp_path / "out", "--format", "diffusers-t2i-adapter"
    assert export_pytorch(*args, "--verify").status == 1


def test_export_without_torch_writes_every_format(
    checkpoint: Path, params: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The native format is also verified and imported."""
    monkeypatch.setitem(sys.modules, "torch", None)
    out = tmp_path / "out"
    args = "--checkpoint", checkpoint, "--out", out, "--format", *FORMATS
    assert export_pytorch(*args).status == 0
    run = export_pytorch(
        "--checkpoint", checkpoint, "--out", tmp_path / "native", "--format", "safetensors", "--verify"
    )
    assert run.status == 0, run.err
    assert "in noise of a clip, read back" in run.out
    assert import_pytorch("--checkpoint", tmp_path / "native", "--out", tmp_path / "again").status == 0
    assert_same(load_inference(tmp_path / "again")[1], params)


# ---- user errors: exporting


def test_existing_folder_is_replaced_only_with_overwrite(checkpoint: Path, tmp_path: Path):
    out = tmp_path / "out"
    args = "--checkpoint", checkpoint, "--out", out, "--format", "diffusers-t2i-adapter"
    assert export_pytorch(*args).status == 0
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    assert_mistake(export_pytorch(*args), str(out), "--overwrite")
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*")} == before
    assert export_pytorch(*args, "--overwrite").status == 0
    (out / MANIFEST).unlink()
    assert_mistake(export_pytorch(*args, "--overwrite"), "was not exported")


def test_missing_checkpoint_or_step_is_named(checkpoint: Path, tmp_path: Path):
    rest = "--out", tmp_path / "out", "--format", "safetensors"
    assert_mistake(export_pytorch("--checkpoint", tmp_path / "none", *rest), "no such folder")
    assert_mistake(export_pytorch("--checkpoint", tmp_path, *rest), "no checkpoint in it")
    assert_mistake(
        export_pytorch("--checkpoint", checkpoint, "--step", 8, *rest), "has no step 8", "there are: 7"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "lost", ["inference", "config", "config/metadata", "inference/_METADATA", "inference/d"]
)
def test_incomplete_checkpoint_is_refused(checkpoint: Path, tmp_path: Path, lost: str):
    folder = shutil.copytree(checkpoint, tmp_path / "incomplete")
    path = folder / str(STEP) / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    if lost == "inference/d":
        shutil.rmtree(folder / str(STEP) / "inference" / "ocdbt.process_0")
    args = "--checkpoint", folder, "--out", tmp_path / "out", "--format", "safetensors"
    assert_mistake(export_pytorch(*args), f"{folder}: step 7")
    assert not (tmp_path / "out").exists()


def test_checkpoint_that_disappears_while_it_is_read_is_named(checkpoint: Path, tmp_path: Path):
    folder = shutil.copytree(checkpoint, tmp_path / "incomplete")
    weights = open_inference(folder)
    shutil.rmtree(folder)
    with pytest.raises(CheckpointError, match="step 7 is damaged: .* cannot be read completely"):
        read_tree(weights.models)


@pytest.mark.release
def test_untrained_pose_encoder_is_refused_by_formats_that_need_it(
    config: UNet3DConfig, params: dict[str, Any], pipeline_folder: Path, tmp_path: Path
):
    """Its feature maps are 0. The error lists the formats that can be used."""
    untrained = init_pose_encoder(config, jax.random.key(0))
    inference = {"unet": params["unet"], "pose_encoder": untrained}
    folder = training_checkpoint(tmp_path / "run", config, inference, "motion", pipeline_folder)
    args = "--checkpoint", folder, "--out", tmp_path / "out", "--format"
    for form in ("diffusers-t2i-adapter", "followyourpose", "followyourpose-safetensors"):
        run = export_pytorch(*args, "safetensors", form)
        others = "pipeline, diffusers-unet2d, tuneavideo, safetensors"
        assert_mistake(run, form, "never trained", "motion", f"does not need it: {others}")
    assert not (tmp_path / "out").exists()
    assert export_pytorch(*args, "diffusers-unet2d", "safetensors").status == 0


def test_unet_without_cross_frame_attention_is_refused_by_the_published_format(
    config: UNet3DConfig, params: dict[str, Any], pipeline_folder: Path, tmp_path: Path
):
    """The published model always has it, so an ablation without it does not fit."""
    ablation = UNet3DConfig(**config.to_json() | {"cross_frame_attention": False})
    folder = training_checkpoint(tmp_path / "run", ablation, params, "motion", pipeline_folder)
    args = "--checkpoint", folder, "--out", tmp_path / "out", "--format"
    assert_mistake(export_pytorch(*args, "followyourpose"), "without cross-frame attention")


def test_pipeline_that_does_not_fit_is_refused(checkpoint: Path, pipeline_folder: Path, tmp_path: Path):
    args = "--checkpoint", checkpoint, "--out", tmp_path / "out", "--format", "diffusers-unet2d", "--pipeline"
    assert_mistake(export_pytorch(*args, "sd14"), "text_encoder has hidden_size 768", "needs 32")
    assert_mistake(export_pytorch(*args, tmp_path / "none"), "no such folder")
    other = shutil.copytree(pipeline_folder, tmp_path / "other")
    file = other / "text_encoder" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"hidden_size": 48}))
    assert_mistake(export_pytorch(*args, other), "hidden_size 48", "needs 32")
    without = shutil.copytree(pipeline_folder, tmp_path / "without")
    find_weights(without / "vae").unlink()
    assert_mistake(export_pytorch(*args, without), f"{without / 'vae'}: no weights")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", ["big", "0MB", "-3GB", "5"])
def test_invalid_shard_size_is_refused(checkpoint: Path, tmp_path: Path, size: str):
    args = "--checkpoint", checkpoint, "--out", tmp_path / "out", "--format", "safetensors"
    assert_mistake(export_pytorch(*args, f"--max-shard-size={size}"), size, "300MB")


def test_disk_that_is_too_small_is_refused_before_writing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 5, 5))
    args = "--checkpoint", checkpoint, "--out", tmp_path / "out", "--format", "safetensors"
    assert_mistake(export_pytorch(*args), "needs ", "the disk has 0.0 MB free")
    assert not any(tmp_path.iterdir())


def test_disk_that_fills_up_leaves_no_files(checkpoint: Path, tmp_path: Path):
    """A limit on the file size makes the kernel refuse to write, as on a full disk."""
    limited = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000)); "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    script = SCRIPTS / "export_pytorch.py"
    code = f"import sys; sys.argv[0] = {str(script)!r}; {limited}"
    args = [
        "--checkpoint",
        checkpoint,
        "--out",
        tmp_path / "out",
        "--format",
        "followyourpose",
        "safetensors",
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "cannot be written (File too large)" in last
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


# ---- user errors: importing


@pytest.fixture
def published(exported: Path, tmp_path: Path) -> Path:
    return shutil.copytree(exported / "followyourpose", tmp_path / "published")


def import_published(folder: Path) -> Run:
    checkpoint, pipeline = folder / f"checkpoint-{STEP}", folder / "stable-diffusion"
    return import_pytorch("--checkpoint", checkpoint, "--pipeline", pipeline, "--out", folder / "again")


def test_truncated_published_file_is_refused(published: Path):
    file = published / f"checkpoint-{STEP}" / "pytorch_model.bin"
    whole = file.read_bytes()
    for length in (len(whole) - 1, len(whole) // 2, 100, 0):
        file.write_bytes(whole[:length])
        assert_mistake(import_published(published), str(file), "damaged")
    assert not (published / "again").exists()


def test_published_pickle_with_code_is_refused_and_not_run(published: Path):
    trap = published / "trap"

    class Code:
        def __reduce__(self) -> Any:
            return Path.touch, (trap,)

    file = published / f"checkpoint-{STEP}" / "pytorch_model.bin"
    for write in (
        lambda: torch.save({"weight": Code()}, file),
        lambda: file.write_bytes(pickle.dumps(Code())),
    ):
        write()
        assert_mistake(import_published(published), str(file), "refused")
        assert not trap.exists()


def test_missing_and_unexpected_keys_are_listed(
    exported: Path, published: Path, pipeline_folder: Path, tmp_path: Path
):
    """The names are those of the file's format."""
    file = published / f"checkpoint-{STEP}" / "pytorch_model.bin"
    state_dict = torch.load(file)
    state_dict["conv_in.wait"] = state_dict.pop("conv_in.weight")
    torch.save(state_dict, file)
    run = import_published(published)
    assert_mistake(run, "1 missing (conv_in.weight)", "1 unexpected (conv_in.wait)")
    adapter = shutil.copytree(exported / "diffusers-t2i-adapter", tmp_path / "adapter")
    file = adapter / "diffusion_pytorch_model.safetensors"
    arrays = load_file(file)
    arrays["adapter.extra"] = arrays.pop("adapter.body.2.resnets.1.block2.bias")
    save_file(arrays, file)
    args = "--pipeline", pipeline_folder, "--pose-encoder", adapter, "--out", tmp_path / "again"
    run = import_pytorch(*args)
    assert_mistake(run, "1 missing (adapter.body.2.resnets.1.block2.bias)", "1 unexpected (adapter.extra)")


def test_adapter_that_does_not_fit_is_refused(pipeline_folder: Path, config: UNet3DConfig, tmp_path: Path):
    """Its kind and sizes come from its config; a folder without one is refused too."""
    args = "--pipeline", pipeline_folder, "--out", tmp_path / "out", "--pose-encoder"
    T2IAdapter(adapter_type="light_adapter", channels=[32, 64, 64]).save_pretrained(tmp_path / "light")
    assert_mistake(import_pytorch(*args, tmp_path / "light"), "light_adapter", "full_adapter")
    T2IAdapter(channels=[8, 8, 8, 8]).save_pretrained(tmp_path / "narrow")
    assert_mistake(import_pytorch(*args, tmp_path / "narrow"), "[8, 8, 8, 8]", "[32, 64, 64, 64]")
    (tmp_path / "empty").mkdir()
    assert_mistake(import_pytorch(*args, tmp_path / "empty"), "not a T2IAdapter folder")
    assert_mistake(import_pytorch(*args, "nobody/no-such-adapter"), "as a Hub id it cannot be downloaded")
    assert not (tmp_path / "out").exists()


def test_import_of_published_checkpoint_needs_a_pipeline(exported: Path, tmp_path: Path):
    args = "--checkpoint", exported / "followyourpose" / f"checkpoint-{STEP}", "--out", tmp_path / "out"
    assert_mistake(import_pytorch(*args), "give --pipeline")


def test_image_unet_to_torch_has_the_names_of_an_image_unet(params: dict[str, Any], pipeline_folder: Path):
    assert sorted(image_unet_to_torch(params["unet"])) == sorted(
        read_weights(find_weights(pipeline_folder / "unet"))
    )
