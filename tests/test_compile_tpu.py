"""The TPU compile check of small models, and programs that one run compiles and another loads."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

import tiny_models
from cli_utils import SCRIPTS, assert_mistake, run_script
from fyp_jax import compilation_cache
from fyp_jax.config import load_config
from fyp_jax.errors import UserError
from fyp_jax.parallel.config import MeshConfig
from fyp_jax.parallel.mesh import make_mesh
from fyp_jax.pipeline.config import SampleConfig
from fyp_jax.pipeline.edit_config import EditConfig
from fyp_jax.pipeline.pipeline import FollowYourPosePipeline
from fyp_jax.tpu import compile_check as compile_check_module
from fyp_jax.tpu.compile_check import CompileCheck, compile_check, head_dims
from fyp_jax.tpu.hlo_stats import Kernel
from fyp_jax.tpu.program_stats import GIB, OutOfMemory, compile_and_measure, head_padding_flops
from fyp_jax.tpu.programs import Program, Programs, bundled_sizes, sampling_programs
from fyp_jax.tpu.report import out_of_memory_message, roofline
from fyp_jax.tpu.topologies import CHIPS, topology_devices
from fyp_jax.training.config import TrainConfig
from fyp_jax.training.loop import train
from fyp_jax.training.stages import STAGES

SCRIPT = SCRIPTS / "compile_tpu.py"
MOTION = SCRIPTS.parent / "configs" / "mini" / "stage2_motion.yaml"
SAMPLE = SCRIPTS.parent / "configs" / "mini" / "sample.yaml"
EDIT = SCRIPTS.parent / "configs" / "mini" / "edit.yaml"
SMALL = (
    *("init_checkpoint=null", "data.height=64", "data.width=64", "data.num_frames=4"),
    "optimizer.ema_decay=null",
)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.write_pipeline(tmp_path_factory.mktemp("tiny") / "pipeline")


@pytest.fixture(scope="module")
def check_motion(pipeline: Path) -> Callable[..., CompileCheck]:
    """Checks the motion stage with one clip per chip, on a topology, with overrides."""
    done: dict[tuple[str, ...], CompileCheck] = {}

    def check(topology: str, *overrides: str) -> CompileCheck:
        if (topology, *overrides) not in done:
            config = load_config(TrainConfig, MOTION, [f"pretrained={pipeline}", *SMALL, *overrides])
            devices = topology_devices(topology)[1]
            done[topology, *overrides] = compile_check(config, devices, clips_per_chip=1)
        return done[topology, *overrides]

    return check


@pytest.mark.tpu_compile
def test_a_product_over_a_sharded_axis_has_its_flops_divided_and_one_all_reduce():
    mesh = make_mesh(MeshConfig(), topology_devices("v5e:2x2")[1])
    x = jax.ShapeDtypeStruct((256, 1024), jnp.float32, sharding=NamedSharding(mesh, P(None, "data")))
    w = jax.ShapeDtypeStruct((1024, 128), jnp.float32, sharding=NamedSharding(mesh, P("data")))
    product = jax.jit(lambda x, w: x @ w, out_shardings=NamedSharding(mesh, P()))
    model_flops = 2 * 256 * 1024 * 128
    program = Program("product", lambda: product.lower(x, w), 1, model_flops, 0)
    stats, _ = compile_and_measure(program, mesh.size, {})
    assert stats.hardware_flops == stats.model_flops == model_flops / 4
    assert stats.collectives == {"all-reduce": (1, 4 * 256 * 128)}
    assert stats.ici_bytes == 2 * 4 * 256 * 128
    assert stats.argument_size_in_bytes == 4 * (256 + 128) * 1024 / 4


@pytest.mark.release
@pytest.mark.tpu_compile
def test_a_larger_pod_needs_the_same_memory_per_chip_and_reduces_only_trainable_gradients(check_motion: Any):
    (small,), (large,) = (check_motion(name).variants["config"].programs for name in ("v5e:2x2", "v5e:4x4"))
    models = tiny_models.models("motion", tiny_models.ExecutionConfig())
    flat = tiny_models.params(models)
    trained = STAGES["motion"].trains(flat)
    gradients = sum(4 * x.size for path, x in flat.items() if trained[path])
    for stats in (small, large):
        assert set(stats.collectives) == {"all-reduce"}
        assert gradients <= stats.collectives["all-reduce"][1] <= 1.1 * gradients
    assert abs(large.peak_hbm_bytes / small.peak_hbm_bytes - 1) < 0.05
    assert large.hardware_flops == pytest.approx(small.hardware_flops, rel=0.01)


@pytest.mark.release
@pytest.mark.tpu_compile
def test_rematerialised_layers_gather_fsdp_parameters_again_and_compute_the_same(check_motion: Any):
    replicated, sharded = (
        check_motion("v5e:2x2", "pretrained=mini", "remat=all", *mesh).variants["config"].programs[0]
        for mesh in ((), ("mesh.data=1", "mesh.fsdp=4"))
    )
    assert sharded.argument_size_in_bytes < 0.5 * replicated.argument_size_in_bytes
    assert sharded.hardware_flops == pytest.approx(replicated.hardware_flops, rel=0.01), "remat differs"
    assert set(sharded.collectives) == {"all-gather", "reduce-scatter", "all-reduce"}


@pytest.mark.release
@pytest.mark.tpu_compile
@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5p:2x2x1", "v6e:2x2"])
def test_all_chips_have_the_same_argument_size_and_flops(check_motion: Any, topology: str):
    v5e, other = (check_motion(name).variants["config"].programs[0] for name in ("v5e:2x2", topology))
    assert other.argument_size_in_bytes == pytest.approx(v5e.argument_size_in_bytes, rel=0.01)
    assert other.hardware_flops == pytest.approx(v5e.hardware_flops, rel=0.02)


@pytest.mark.release
@pytest.mark.tpu_compile
def test_hardware_flops_of_a_step_are_close_to_its_model_flops(check_motion: Any):
    (stats,) = check_motion("v5e:2x2").variants["config"].programs
    assert 0.7 * stats.hardware_flops <= stats.model_flops <= 1.01 * stats.hardware_flops
    assert stats.unknown_loops == stats.unknown_kernels == stats.padding_flops == 0
    terms = roofline([stats], CHIPS["v5e"])
    assert terms["compute"] == stats.padded_flops[128] / 197e12 >= stats.hardware_flops / 197e12
    assert 0 < terms["ICI"] < terms["HBM"]
    assert stats.alias_size_in_bytes > 0.9 * stats.output_size_in_bytes, "the state is not donated"


def check_of_v5e(what: str, config: Path, pipeline: Path, folder: Path) -> tuple[str, dict[str, Any]]:
    """What the check of two small frames in three steps prints for a v5e chip, and its JSON."""
    file = folder / "check.json"
    small = ["num_inference_steps=3", "num_frames=2", "height=64", "width=64"]
    options = [*small, "--topology", "v5e:2x2", "--json", file]
    run = run_script(SCRIPT, what, "--config", config, f"pretrained={pipeline}", *options)
    assert run.status == 0, run
    return run.out, json.loads(file.read_text())


@pytest.mark.slow
@pytest.mark.tpu_compile
def test_check_of_sampling_prints_a_table_and_writes_json(pipeline: Path, tmp_path: Path):
    out, result = check_of_v5e("sample", SAMPLE, pipeline, tmp_path)
    assert "model / hardware FLOPs" in out
    config = result["config"]
    assert result["chip"]["hbm_gib"] == 16
    assert [item["name"] for item in config["programs"]] == [
        "encode_text",
        "encode_pose",
        "denoise",
        "decode",
    ]
    assert 0.9 * config["hardware_flops"] <= config["model_flops"] <= 1.01 * config["hardware_flops"]
    assert config["peak_hbm_bytes"] < GIB
    denoise = config["programs"][2]
    assert denoise["peak_hbm_bytes"] > denoise["argument_size_in_bytes"] + denoise["resident_bytes"] > 0


def test_a_long_edit_is_beside_a_sampling_step_of_the_whole_clip(pipeline: Path):
    """A clip of so many frames is sampled in windows, but edited as a whole."""
    small = [f"pretrained={pipeline}", "num_frames=12", "height=64", "width=64", "num_inference_steps=3"]
    names = [
        item.name for item in sampling_programs(load_config(EditConfig, EDIT, small), jax.devices()).programs
    ]
    assert names[-4:] == ["denoise", "decode", "edit", "invert"]


@pytest.mark.release
@pytest.mark.tpu_compile
def test_check_of_an_edit_has_its_step_beside_that_of_sampling(pipeline: Path, tmp_path: Path):
    out, result = check_of_v5e("edit", EDIT, pipeline, tmp_path)
    edit, programs = result["edit"], {item["name"]: item for item in result["config"]["programs"]}
    for name in ("denoise", "invert", "edit"):
        assert edit[f"{name}_hbm_bytes"] == programs[name]["peak_hbm_bytes"]
    ratio = edit["edit_hbm_bytes"] / edit["denoise_hbm_bytes"]
    assert edit["edit_over_denoise"] == ratio
    # Two frames of 8x8 latents of four channels at four levels of noise; maps of 77 tokens in three steps.
    assert edit["kept_latents_bytes"] == 4 * 4 * 2 * 8 * 8 * 4
    assert edit["kept_word_maps_bytes"] == 3 * 4 * 2 * 8 * 8 * 77
    assert f"HBM of an edit's step / of a sampling step: {ratio:.2f}" in out
    assert "kept for 3 steps, MiB: 0.1 (0.0 latents, 0.1 word maps at most)" in out


def program_too_large_for_v5e() -> Programs:
    """A stand-in for a training step that needs more HBM than a v5e chip has."""
    sharding = SingleDeviceSharding(topology_devices("v5e:2x2")[1][0])
    x = jax.ShapeDtypeStruct((40000, 40000), jnp.float32, sharding=sharding)
    lower = jax.jit(lambda x: (jnp.sort(x @ x, axis=0), x.T + x)).lower
    return Programs([Program("step", lambda: lower(x), 1, 0, 0)], 1, {})


@pytest.mark.tpu_compile
def test_a_config_that_does_not_fit_exits_with_1_and_suggests_fields(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(OutOfMemory) as caught:
        compile_and_measure(program_too_large_for_v5e().programs[0], 1, {})
    assert caught.value.used_bytes > caught.value.available_bytes > 15 * GIB
    monkeypatch.setattr(compile_check_module, "training_programs", lambda *_: program_too_large_for_v5e())
    run = run_script(SCRIPT, "--config", MOTION, "--topology", "v5e:2x2")
    assert run.status == 1, run
    assert "too much" in run.out
    assert "remat=transformers" in run.out


def test_out_of_memory_message_suggests_only_fields_that_the_config_does_not_use():
    error = OutOfMemory("step", 20.0 * GIB, 15.75 * GIB, "Ran out of memory")
    text = out_of_memory_message(error, TrainConfig(dtype="bfloat16", remat="transformers"))
    assert "20.00 GiB of HBM and the chip has 15.75, 4.25 too much" in text
    assert "remat=all" in text
    assert " dtype=bfloat16" not in text
    assert "decode_chunk_size=2" in out_of_memory_message(error, SampleConfig())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--topology", "v9:2x2"), "unknown topology; give CHIP:SHAPE"),
        (("--topology", "v5e"), "a chip of v4, v5e, v5p, v6e"),
        (("--topology", "here", "no_such=1"), "unknown key no_such"),
        (("--topology", "here", "data.batch_size=3", "mesh.data=8"), "is not a multiple of 8"),
        (("sample", "--clips-per-chip", "2"), "--clips-per-chip is for training; sample makes one clip"),
        (("--clips-per-chip", "0"), "--clips-per-chip 0 must be at least 1"),
    ],
)
def test_wrong_options_print_one_line(options: tuple[str, ...], message: str):
    assert_mistake(run_script(SCRIPT, "--config", MOTION, *options), message)


@pytest.mark.parametrize(
    ("mesh", "expected"), [([], 16), (["mesh.frame=2"], 8), (["mesh.data=1", "mesh.frame=-1"], 2)]
)
def test_clips_of_a_chip_are_those_of_its_part_of_the_mesh(
    monkeypatch: pytest.MonkeyPatch, pipeline: Path, mesh: list[str], expected: int
):
    seen = []

    def measure(config: TrainConfig, *_: Any) -> Any:
        seen.append(config.data.batch_size)
        return [], Programs([], len(jax.devices()), {})

    monkeypatch.setattr(compile_check_module, "_measure", measure)
    config = load_config(TrainConfig, MOTION, [f"pretrained={pipeline}", *SMALL, *mesh])
    compile_check(config, jax.devices(), clips_per_chip=2)
    assert seen == [expected]


@pytest.mark.parametrize(("used", "expected"), [(1, "v5p:2x2x1"), (8, "v5p:2x2x2"), (128, None)])
def test_baseline_of_a_sampler_that_does_not_fit_is_measured_on_enough_larger_chips(
    monkeypatch: pytest.MonkeyPatch, used: int, expected: str | None
):
    devices = jax.devices() * 16
    out_of_memory = OutOfMemory("denoise", 2.0, 1.0, "too large")

    def measure(config: SampleConfig, on: Any, baseline: bool) -> Any:
        if on is devices:
            raise out_of_memory
        return [], None

    monkeypatch.setattr(compile_check_module, "_measure", measure)
    monkeypatch.setattr(compile_check_module, "topology_devices", lambda name: (None, name))
    found = compile_check_module._measure_baseline(SampleConfig(), devices, used)
    assert found == compile_check_module.Variant([], out_of_memory, expected)


@pytest.mark.tpu_compile
def test_a_shape_that_no_pod_has_prints_one_line():
    assert_mistake(
        run_script(SCRIPT, "--config", MOTION, "--topology", "v5e:3x5"), "v5e:3x5", "not divisible"
    )


def test_without_libtpu_the_error_names_the_extra_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '.\[tpu\]'"):
        topology_devices("v5e:2x2")


def test_hub_ids_of_stable_diffusion_1_take_the_bundled_sizes():
    name, note = bundled_sizes("CompVis/stable-diffusion-v1-4")
    assert name == "sd14"
    assert "pretrained=sd14" in (note or "")
    assert bundled_sizes("mini") == ("mini", None)


def test_padding_flops_are_those_beyond_the_head_dimension():
    dims = head_dims("sd14", 64 * 64)
    assert dims == {4096: 40, 1024: 80, 256: 160, 64: 160}
    padded = Kernel("flash", 1280, ((8, 8, 4096, 128), (8, 8, 8192, 128)), ())
    assert head_padding_flops(padded, dims) == 880
    assert head_padding_flops(padded._replace(operand_shapes=((8, 8, 4096, 40),)), dims) == 0
    ours = Kernel("attention_forward_8x40", 1280, ((8, 4096, 320), (8, 8192, 320)), ())
    assert head_padding_flops(ours, dims) == 0


# Programs that are compiled for the devices of this machine and saved.


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.write_videos(tmp_path_factory.mktemp("videos"), 5)


@pytest.mark.release
def test_training_with_a_saved_step_has_the_losses_of_training_without(
    pipeline: Path, records: Path, tmp_path: Path
):
    overrides = [
        *(f"pretrained={pipeline}", *SMALL, "random_init=true", "num_train_steps=2", "log.log_interval=1"),
        *("data.batch_size=8", "data.workers=0", f"data.path={records}", "optimizer.lr_schedule=constant"),
    ]
    file = tmp_path / "step.compiled"
    run = run_script(SCRIPT, "--config", MOTION, "--topology", "here", "--save", file, *overrides)
    assert run.status == 0, run
    losses = []
    for name, extra in (("without", []), ("with", [f"aot_path={file}"])):
        train(load_config(TrainConfig, MOTION, [*overrides, f"output_dir={tmp_path / name}", *extra]))
        with (tmp_path / name / "metrics.csv").open() as table:
            losses.append([row["loss/all"] for row in csv.DictReader(table)])
    assert losses[0] == losses[1]
    assert len(losses[0]) == 2
    other = [f"output_dir={tmp_path}", "data.num_frames=2", f"aot_path={file}"]
    with pytest.raises(UserError, match="was compiled for data.num_frames=4, here 2"):
        train(load_config(TrainConfig, MOTION, [*overrides, *other]))


@pytest.mark.usefixtures("cache_folder")
@pytest.mark.slow
def test_sampling_with_saved_programs_makes_the_clip_of_sampling_without(pipeline: Path, tmp_path: Path):
    overrides = [f"pretrained={pipeline}", "num_inference_steps=3", "num_frames=2", "random_init=true"]
    overrides += ["prompt=[x]", "pose_guidance=true", "height=64", "width=64"]
    file = tmp_path / "sampler.compiled"
    for _ in range(2):  # the second time, JAX's compilation cache has them
        run = run_script(
            SCRIPT, "sample", "--config", SAMPLE, "--topology", "here", "--save", file, *overrides
        )
        assert run.status == 0, run
    pose, calls, videos = np.full((2, 64, 64, 3), 255, np.uint8), [], []
    for extra in ([], [f"aot_path={file}"]):
        config = load_config(SampleConfig, SAMPLE, [*overrides, *extra])
        pipe = FollowYourPosePipeline.from_config(config)
        options = {"num_inference_steps": 3, "pose_guidance": True}
        videos.append(pipe("x", pose, **options, on_step=lambda: calls.append(None)).frames)
    assert np.array_equal(*videos)
    assert len(calls) == 6, "the progress bar does not reach its end"
    with pytest.raises(UserError, match="does not fit this run"):
        pipe("x", np.full((3, 64, 64, 3), 255, np.uint8), **options)
    with pytest.raises(UserError, match="num_inference_steps=3, not 4"):
        pipe("x", pose, num_inference_steps=4, pose_guidance=True)
    with pytest.raises(UserError, match="num_inference_steps=3, here 4"):
        FollowYourPosePipeline.from_config(
            load_config(SampleConfig, SAMPLE, [*overrides, "num_inference_steps=4", f"aot_path={file}"])
        )


def test_loading_a_file_without_programs_raises_an_error_that_says_so(tmp_path: Path):
    devices = list(make_mesh(MeshConfig(), jax.devices()[:1]).devices.flatten())
    fingerprint = compilation_cache.environment_fingerprint(devices)
    with pytest.raises(UserError, match="cannot be read"):
        compilation_cache.load_programs(str(tmp_path / "none"), fingerprint, devices)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(UserError, match="holds no programs"):
        compilation_cache.load_programs(str(tmp_path / "text"), fingerprint, devices)
    (tmp_path / "broken").write_bytes(json.dumps(fingerprint).encode() + b"\nxx")
    with pytest.raises(UserError, match="does not open here"):
        compilation_cache.load_programs(str(tmp_path / "broken"), fingerprint, devices)
