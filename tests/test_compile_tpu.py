"""What the TPU compiler says of small models; programs that are compiled in one run, used in another."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

import tiny_models
from cli_utils import SCRIPTS, assert_mistake, run_script
from fyp_jax import compiled
from fyp_jax.config import SampleConfig, load_config
from fyp_jax.errors import UserError
from fyp_jax.parallel.config import MeshConfig
from fyp_jax.parallel.mesh import make_mesh
from fyp_jax.pipeline.pipeline import load_sampler
from fyp_jax.tpu import check as checks
from fyp_jax.tpu.check import Check, check, head_widths
from fyp_jax.tpu.chips import CHIPS, topology_devices
from fyp_jax.tpu.hlo import Kernel
from fyp_jax.tpu.measure import GIB, OverMemory, _padding, measure
from fyp_jax.tpu.programs import Program, Programs, own_sizes
from fyp_jax.tpu.report import over_memory, roofline
from fyp_jax.training.config import TrainConfig
from fyp_jax.training.loop import train
from fyp_jax.training.stages import STAGES

SCRIPT = SCRIPTS / "compile_tpu.py"
MOTION = SCRIPTS.parent / "configs" / "mini" / "stage2_motion.yaml"
SAMPLE = SCRIPTS.parent / "configs" / "mini" / "sample.yaml"
SMALL = ("init=null", "data.height=64", "data.width=64", "data.frames=4", "optimizer.ema=null")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.write_pipeline(tmp_path_factory.mktemp("tiny") / "pipeline")


@pytest.fixture(scope="module")
def motion(pipeline: Path) -> Callable[..., Check]:
    """One clip a chip of the motion stage, on a topology, with other options."""
    found: dict[tuple[str, ...], Check] = {}

    def on(topology: str, *options: str) -> Check:
        if (topology, *options) not in found:
            config = load_config(TrainConfig, MOTION, [f"pretrained={pipeline}", *SMALL, *options])
            found[topology, *options] = check(config, topology_devices(topology)[1], clips_per_chip=1)
        return found[topology, *options]

    return on


@pytest.mark.tpu_compile
def test_a_larger_pod_holds_as_much_on_a_chip_and_moves_the_trainable_gradients(motion: Any):
    (small,), (large,) = (motion(name).columns["ours"].programs for name in ("v5e:2x2", "v5e:4x4"))
    models = tiny_models.models("motion", tiny_models.ExecutionConfig())
    flat = tiny_models.params(models)
    trained = STAGES["motion"].trains(flat)
    gradients = sum(4 * x.size for path, x in flat.items() if trained[path])
    for found in (small, large):
        assert set(found.messages) == {"all-reduce"}
        assert gradients <= found.messages["all-reduce"][1] <= 1.1 * gradients
    assert abs(large.memory / small.memory - 1) < 0.05
    assert large.flops == pytest.approx(small.flops, rel=0.01)


@pytest.mark.tpu_compile
def test_parameters_in_shares_are_fetched_again_where_layers_are_computed_again(motion: Any):
    everywhere, shared = (
        motion("v5e:2x2", "pretrained=mini", "remat=all", *mesh).columns["ours"].programs[0]
        for mesh in ((), ("mesh.data=1", "mesh.fsdp=4"))
    )
    assert shared.arguments < 0.5 * everywhere.arguments
    assert shared.flops == pytest.approx(everywhere.flops, rel=0.01), "remat does something else"
    assert set(shared.messages) == {"all-gather", "reduce-scatter", "all-reduce"}


@pytest.mark.tpu_compile
@pytest.mark.parametrize("topology", ["v4:2x2x1", "v5p:2x2x1", "v6e:2x2"])
def test_other_chips_hold_and_compute_the_same(motion: Any, topology: str):
    v5e, other = (motion(name).columns["ours"].programs[0] for name in ("v5e:2x2", topology))
    assert other.arguments == pytest.approx(v5e.arguments, rel=0.01)
    assert other.flops == pytest.approx(v5e.flops, rel=0.02)


@pytest.mark.tpu_compile
def test_a_step_computes_little_that_the_maths_does_not_need(motion: Any):
    (found,) = motion("v5e:2x2").columns["ours"].programs
    assert 0.7 * found.flops <= found.needed <= 1.01 * found.flops
    assert found.unknown_loops == found.unknown_kernels == found.padding == 0
    terms = roofline([found], CHIPS["v5e"])
    assert terms["compute"] == found.flops / 197e12
    assert 0 < terms["links"] < terms["HBM"]
    assert found.aliased > 0.9 * found.outputs, "the state is donated"


@pytest.mark.tpu_compile
def test_the_sampler_and_its_json(pipeline: Path, tmp_path: Path):
    options = ["steps=3", "pose.frames=2", "--topology", "v5e:2x2", "--json", tmp_path / "found.json"]
    run = run_script(SCRIPT, "sample", "--config", SAMPLE, f"pretrained={pipeline}", *options)
    assert run.status == 0, run
    assert "share needed" in run.out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["chip"]["memory"] == 16
    assert [item["name"] for item in found["ours"]["programs"]] == [
        "encode_text",
        "encode_pose",
        "denoise",
        "decode",
    ]
    assert 0.9 * found["ours"]["flops"] <= found["ours"]["needed"] <= 1.01 * found["ours"]["flops"]
    assert found["ours"]["memory"] < GIB
    denoise = found["ours"]["programs"][2]
    assert denoise["memory"] > denoise["arguments"] + denoise["beside"] > 0


def large_program() -> Programs:
    """As of a step that no v5e chip has room for."""
    sharding = SingleDeviceSharding(topology_devices("v5e:2x2")[1][0])
    x = jax.ShapeDtypeStruct((40000, 40000), jnp.float32, sharding=sharding)
    lower = jax.jit(lambda x: (jnp.sort(x @ x, axis=0), x.T + x)).lower
    return Programs([Program("step", lambda: lower(x), 1, 0, 0)], 1, {})


@pytest.mark.tpu_compile
def test_what_does_not_fit_ends_with_1_and_says_what_to_try(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(OverMemory) as caught:
        measure(large_program().programs[0], 1, {})
    assert caught.value.used > caught.value.has > 15 * GIB
    monkeypatch.setattr(checks, "training_programs", lambda *_: large_program())
    run = run_script(SCRIPT, "--config", MOTION, "--topology", "v5e:2x2")
    assert run.status == 1, run
    assert "too much" in run.out
    assert "remat=transformers" in run.out


def test_knobs_are_those_that_a_config_does_not_use():
    error = OverMemory("step", 20.0 * GIB, 15.75 * GIB, "Ran out of memory")
    text = over_memory(error, TrainConfig(dtype="bfloat16", remat="transformers"))
    assert "20.00 GiB of 15.75, 4.25 too much" in text
    assert "remat=all" in text
    assert " dtype=bfloat16" not in text
    assert "decode_chunk_size=2" in over_memory(error, SampleConfig())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--topology", "v9:2x2"), "is not here, nor CHIP:SHAPE"),
        (("--topology", "v5e"), "a chip of v4, v5e, v5p, v6e"),
        (("--topology", "here", "no_such=1"), "unknown key no_such"),
        (("--topology", "here", "data.batch_size=3", "mesh.data=8"), "is not a multiple of 8"),
    ],
)
def test_mistakes(options: tuple[str, ...], said: str):
    assert_mistake(run_script(SCRIPT, "--config", MOTION, *options), said)


@pytest.mark.tpu_compile
def test_a_shape_that_no_pod_has():
    assert_mistake(
        run_script(SCRIPT, "--config", MOTION, "--topology", "v5e:3x5"), "v5e:3x5", "not divisible"
    )


def test_without_the_compiler_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '.\[tpu\]'"):
        topology_devices("v5e:2x2")


def test_hub_ids_of_our_sizes_need_no_download():
    name, note = own_sizes("CompVis/stable-diffusion-v1-4")
    assert name == "sd14"
    assert "pretrained=sd14" in (note or "")
    assert own_sizes("mini") == ("mini", None)


def test_heads_that_are_filled_up():
    widths = head_widths("sd14", 64 * 64)
    assert widths == {4096: 40, 1024: 80, 256: 160, 64: 160}
    padded = Kernel("flash", 1280, ((8, 8, 4096, 128), (8, 8, 8192, 128)), ())
    assert _padding(padded, widths) == 880
    assert _padding(padded._replace(operands=((8, 8, 4096, 40),)), widths) == 0


# On this machine's devices.


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.write_videos(tmp_path_factory.mktemp("videos"), 5)


def test_training_with_a_step_that_was_compiled_before(pipeline: Path, records: Path, tmp_path: Path):
    overrides = [
        f"pretrained={pipeline}",
        *SMALL,
        "random_init=true",
        "data.batch_size=8",
        "data.workers=0",
    ]
    overrides += ["optimizer.schedule=constant", f"data.path={records}", "steps=2", "log.every=1"]
    file = tmp_path / "step.compiled"
    run = run_script(SCRIPT, "--config", MOTION, "--topology", "here", "--save", file, *overrides)
    assert run.status == 0, run
    losses = []
    for name, extra in (("without", []), ("with", [f"compiled={file}"])):
        config = load_config(TrainConfig, MOTION, [*overrides, f"out={tmp_path / name}", *extra])
        train(config)
        with (tmp_path / name / "metrics.csv").open() as table:
            losses.append([row["loss/all"] for row in csv.DictReader(table)])
    assert losses[0] == losses[1]
    assert len(losses[0]) == 2
    other = load_config(
        TrainConfig, MOTION, [*overrides, f"out={tmp_path}", "data.frames=2", f"compiled={file}"]
    )
    with pytest.raises(UserError, match="was made for data.frames=4, here 2"):
        train(other)


@pytest.mark.usefixtures("kept_folder")
def test_sampling_with_programs_that_were_compiled_before(pipeline: Path, tmp_path: Path):
    overrides = [f"pretrained={pipeline}", "steps=3", "pose.frames=2", "random_init=true"]
    file = tmp_path / "sampler.compiled"
    for _ in range(2):  # the second time they are in the cache
        run = run_script(
            SCRIPT, "sample", "--config", SAMPLE, "--topology", "here", "--save", file, *overrides
        )
        assert run.status == 0, run
    skeleton, calls = np.ones((2, 64, 64, 3), np.float32), []
    videos, how = [], {"steps": 3, "pose_guidance": True}
    for extra in ([], [f"compiled={file}"]):
        sampler, params, _ = load_sampler(load_config(SampleConfig, SAMPLE, [*overrides, *extra]))
        videos.append(sampler(params, "x", skeleton, **how, on_step=lambda: calls.append(None)))
    assert np.array_equal(*videos)
    assert len(calls) == 6, "the progress bar reaches its end"
    with pytest.raises(UserError, match="does not fit this run"):
        sampler(params, "x", np.ones((3, 64, 64, 3), np.float32), **how)
    with pytest.raises(UserError, match="are for steps=3, not 4"):
        sampler(params, "x", skeleton, steps=4, pose_guidance=True)
    with pytest.raises(UserError, match="steps=3, here 4"):
        load_sampler(load_config(SampleConfig, SAMPLE, [*overrides, "steps=4", f"compiled={file}"]))


def test_files_that_are_no_programs(tmp_path: Path):
    devices = list(make_mesh(MeshConfig(), jax.devices()[:1]).devices.flatten())
    fingerprint = compiled.here(devices)
    with pytest.raises(UserError, match="cannot be read"):
        compiled.load_programs(str(tmp_path / "none"), fingerprint, devices)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(UserError, match="holds no programs"):
        compiled.load_programs(str(tmp_path / "text"), fingerprint, devices)
    (tmp_path / "broken").write_bytes(json.dumps(fingerprint).encode() + b"\nxx")
    with pytest.raises(UserError, match="does not open here"):
        compiled.load_programs(str(tmp_path / "broken"), fingerprint, devices)
