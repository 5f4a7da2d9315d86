"""The plan of a run: properties of its arithmetic, what it refuses, and the command."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest
from etils import epath

import tiny_models
from cli_utils import SCRIPTS, assert_mistake, run_script
from fyp_jax.checkpoints.checksums import read_checksums
from fyp_jax.config import load_config
from fyp_jax.errors import UserError
from fyp_jax.tpu.plan_inputs import (
    DataFigures,
    StepFigures,
    check_data,
    check_step,
    comparable_fields,
    read_data,
    read_step,
)
from fyp_jax.tpu.run_plan import (
    LOADER,
    SHARD_BYTES,
    LatentBytes,
    Training,
    hosts_of,
    plan_preparation,
    plan_storage,
    plan_training,
)
from fyp_jax.tpu.run_state import run_state
from fyp_jax.tpu.topologies import CHIPS
from fyp_jax.training.config import TrainConfig
from fyp_jax.training.loop import train

SCRIPT, BENCHMARK = SCRIPTS / "plan_run.py", SCRIPTS / "benchmark.py"
MOTION = SCRIPTS.parent / "configs" / "mini" / "stage2_motion.yaml"
ROOFLINE = {"compute": 0.16, "transcendentals": 0.01, "HBM": 0.1, "ICI": 0.004}
DATA = DataFigures(
    *("videos", "captioned_videos"),
    *(400.0, 5e6, 0.3, 5e6, 1.5),
    *(8, 5, 512, 512, None, False),
)
DATA_JSON = {"benchmark": "data_rates", **dataclasses.asdict(DATA)}


def training(chips: int, clips: int = 240_000, cores: int | None = 112, **changes: Any) -> Training:
    """The plan of a run with one clip a chip, on a mesh that divides clips alone."""
    hosts = hosts_of(chips, 1, {"data": chips, "fsdp": 1, "frame": 1}, chips, cores)
    given = {"chips": chips, "batch_size": chips, "steps": clips // chips, "hosts": hosts, "data": DATA}
    return plan_training(ROOFLINE, **(given | changes))


@pytest.mark.parametrize("chips", [4, 16, 64])
def test_twice_the_chips_take_half_the_hours_and_as_many_cores_a_host(chips: int):
    few, many = training(chips), training(2 * chips)
    assert many.hours == pytest.approx(few.hours / 2)
    assert many.hours * many.chips == pytest.approx(few.hours * few.chips)
    assert many.clips_per_second == pytest.approx(2 * few.clips_per_second)
    assert many.cores_per_host == few.cores_per_host
    assert many.hosts.count == 2 * few.hosts.count


def test_loader_cores_and_bytes_are_proportional_to_the_cost_of_a_clip():
    for factor in (0.5, 1.0, 3.0):
        plan = training(
            16, data=dataclasses.replace(DATA, load_seconds=factor * 0.3, load_bytes=factor * 5e6)
        )
        # a host of four chips takes four clips in 0.16 s
        assert plan.cores_per_host == pytest.approx(factor * 0.3 * 4 / 0.16)
        assert plan.read_per_host == pytest.approx(factor * 5e6 * 4 / 0.16)


@pytest.mark.parametrize("name", list(ROOFLINE))
def test_the_longest_term_bounds_the_run(name: str):
    longer = plan_training(
        {**ROOFLINE, name: 1.0}, chips=4, batch_size=4, steps=3600, hosts=training(4).hosts, data=None
    )
    assert longer.bound == name
    assert longer.hours == 1.0
    assert longer.step_seconds[longer.bound] == max(longer.step_seconds.values())


def test_the_loader_bounds_the_run_exactly_where_a_host_has_fewer_cores_than_it_needs():
    needed = training(16).cores_per_host or 0
    assert training(16, cores=int(needed) + 1).bound == "compute"
    slow = training(16, cores=int(needed) // 2)
    assert slow.bound == LOADER
    assert slow.hours == pytest.approx(training(16).hours * needed / (int(needed) // 2))
    assert LOADER not in training(16, cores=None).step_seconds


@pytest.mark.parametrize("frame", [1, 2, 4, 8, 16])
def test_hosts_together_load_each_clip_once_unless_its_frames_are_on_several(frame: int):
    mesh = {"data": 32 // frame, "fsdp": 1, "frame": frame}
    hosts = hosts_of(32, 1, mesh, 64 // frame, None)
    copies = max(1, frame // 4)
    assert hosts.count * hosts.clips == 64 // frame * copies


def test_storage_and_preparation_are_proportional_to_the_items():
    small, large = (
        (plan_storage(100, 3, items, DATA, LatentBytes(10, 7)), plan_preparation(items, DATA, 10))
        for items in (1e6, 1e8)
    )
    assert small[0].checkpoints == large[0].checkpoints == 300
    assert large[0].records == 100 * (small[0].records or 0) == 1e8 * 5e6
    assert large[0].latents == 1e8 * (400 * 10 + 7)
    assert small[1] is not None
    assert large[1] is not None
    assert large[1].core_hours == pytest.approx(100 * small[1].core_hours)
    assert large[1].hours == pytest.approx(large[1].core_hours / 10)
    assert small[1].workers_for_a_day >= small[1].core_hours / 24 > small[1].workers_for_a_day - 1


def test_more_workers_than_shards_do_not_help():
    items = 3 * SHARD_BYTES / DATA.bytes_per_item
    plans = [plan_preparation(items, DATA, workers) for workers in (1, 3, 100)]
    hours = [plan.hours for plan in plans if plan]
    assert hours[1] == pytest.approx(hours[0] / 3)
    assert hours[2] == hours[1]


def test_records_that_were_there_have_no_preparation():
    assert plan_preparation(10.0, dataclasses.replace(DATA, prepare_seconds=None), 1) is None


# What does not fit together.

MESH = {"data": 4, "fsdp": 1, "frame": 1}
STEP = StepFigures("step.json", "v5e:2x2", CHIPS["v5e"], 4, MESH, 1, {"dtype": "bfloat16"}, ROOFLINE, 10**9)


def test_a_step_of_fewer_chips_holds_for_more():
    check_step(STEP, CHIPS["v5e"], {**MESH, "data": 256}, 1, {"dtype": "bfloat16"})


@pytest.mark.parametrize(
    ("step", "asked", "message"),
    [
        ({}, {"chip": CHIPS["v5p"]}, "compiled for v5e, and the plan is for v5p"),
        ({}, {"clips": 2}, "1 clips a chip, and the plan 2"),
        ({}, {"fields": {"dtype": "float32"}}, "was compiled for dtype=bfloat16, and the config has float32"),
        ({}, {"fields": {}}, "was compiled for dtype=bfloat16, and the config has None"),
        ({}, {"mesh": {"data": 8, "fsdp": 2, "frame": 1}}, "mesh.fsdp=1, and the plan has 2"),
        ({}, {"mesh": {"data": 8, "fsdp": 1, "frame": 4}}, "mesh.frame=1, and the plan has 4"),
        ({"mesh": {**MESH, "data": 1}}, {}, "mesh.data=1, and the plan has 4; with 1 no gradients are sent"),
        ({}, {"mesh": {**MESH, "data": 1}}, "mesh.data=4, and the plan has 1"),
    ],
)
def test_a_step_of_something_else_is_refused(step: dict[str, Any], asked: dict[str, Any], message: str):
    given = {"chip": CHIPS["v5e"], "mesh": MESH, "clips": 1, "fields": {"dtype": "bfloat16"}} | asked
    with pytest.raises(UserError, match=message):
        check_step(STEP._replace(**step), *given.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"height": 256}, "data.height=256, and the config has 512"),
        ({"stride": 1}, "data.stride=1"),
        ({"cached_latents": True}, "data.cached_latents=True"),
        ({"kind": "pose_images"}, "loaded pose_images, and the stage trains on captioned_videos"),
    ],
)
def test_a_data_benchmark_of_other_clips_is_refused(changes: dict[str, Any], message: str):
    data = TrainConfig().data
    check_data(DATA, Path("data.json"), "captioned_videos", data)
    with pytest.raises(UserError, match=message):
        check_data(dataclasses.replace(DATA, **changes), Path("data.json"), "captioned_videos", data)


NO_STEP, NO_DATA = "is not the JSON of a compile check", "is not the JSON of a data benchmark"


@pytest.mark.parametrize(
    ("text", "as_step", "as_data"),
    [
        ("", "is not JSON", "is not JSON"),
        ("[]", "is not a JSON object", "is not a JSON object"),
        ("{}", NO_STEP, NO_DATA),
        (json.dumps(DATA_JSON | {"load_seconds": 0}), NO_STEP, "0.0 is not a positive number"),
        (json.dumps({"compiled": {"command": "sample"}, "config": {}}), "programs of `sample`", NO_DATA),
    ],
)
def test_another_file_is_refused(text: str, as_step: str, as_data: str, tmp_path: Path):
    file = tmp_path / "figures.json"
    file.write_text(text)
    with pytest.raises(UserError, match=as_step):
        read_step(file)
    with pytest.raises(UserError, match=as_data):
        read_data(file)


def test_a_step_that_does_not_fit_is_refused(tmp_path: Path):
    file = tmp_path / "step.json"
    compiled = {"command": "train", "topology": "v5e:2x2"}
    file.write_text(json.dumps({"chip": {}, "compiled": compiled, "config": {"fits": False}}))
    with pytest.raises(UserError, match="does not fit v5e:2x2"):
        read_step(file)


# The command.


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.write_pipeline(tmp_path_factory.mktemp("tiny") / "pipeline")


@pytest.fixture(scope="module")
def files(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """Options of the command, with a step of `overrides` on four v5e chips and a data benchmark."""
    folder, overrides = tmp_path_factory.mktemp("figures"), _overrides(pipeline)
    fields = run_state(load_config(TrainConfig, MOTION, overrides)).fields
    fingerprint = fields | {"mesh": "data=4 fsdp=1 frame=1", "data.batch_size": "8", "devices": "4 x TPU"}
    step = {
        "chip": dataclasses.asdict(CHIPS["v5e"]),
        "compiled": {"command": "train", "topology": "v5e:2x2", "devices": 4, "fingerprint": fingerprint},
        "config": {"fits": True, "roofline": ROOFLINE, "peak_hbm_bytes": 10**9},
    }
    (folder / "step.json").write_text(json.dumps(step))
    (folder / "data.json").write_text(json.dumps(DATA_JSON | {"height": 64, "width": 64, "stride": 2}))
    return [*overrides, "--config", MOTION, "--step", folder / "step.json", "--data", folder / "data.json"]


def _overrides(pipeline: Path) -> list[str]:
    sizes = ("data.height=64", "data.width=64", "data.batch_size=8")
    return [f"pretrained={pipeline}", *sizes]


@pytest.mark.tpu_compile
def test_the_command_prints_and_writes_the_plan_of_a_larger_slice(files: list[Any], tmp_path: Path):
    files = [x for x in files if x != "data.batch_size=8"]
    out = tmp_path / "plan.json"
    run = run_script(
        SCRIPT, *files, "--topology", "v5e:4x4", "--clips", "1e8", "--steps", "40", "--json", out
    )
    assert run.status == 0, run
    assert "weak scaling" in run.out
    assert "bound by" in run.out
    plan = json.loads(out.read_text())
    assert plan["training"]["chips"] == 16
    assert plan["training"]["batch_size"] == 32
    assert plan["training"]["bound"] == "compute"
    assert plan["training"]["hours"] == pytest.approx(40 * 0.16 / 3600)
    assert plan["storage"]["records"] == 1e8 * 5e6
    assert plan["preparation"]["core_hours"] == pytest.approx(1e8 * 1.5 / 3600)


@pytest.mark.tpu_compile
def test_a_step_of_another_batch_or_config_ends_the_command_with_one_line(files: list[Any]):
    assert_mistake(run_script(SCRIPT, *files, "--topology", "v5e:2x4"), "2 clips a chip, and the plan 1")
    other = run_script(SCRIPT, *files, "data.batch_size=16", "remat=all", "--topology", "v5e:2x4")
    assert_mistake(other, "compiled for remat=none, and the config has all")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--clips-per-chip", "1"), "exclude each other"),
        (("--workers", "0"), "--workers 0 must be at least 1"),
        (("--data", "none.json"), "none.json: cannot be read"),
        (("no_such=1",), "unknown key no_such"),
    ],
)
def test_wrong_options_print_one_line(files: list[Any], options: tuple[str, ...], message: str):
    assert_mistake(run_script(SCRIPT, *files, "--topology", "v5e:4x4", *options), message)


@pytest.mark.parametrize(
    ("overrides", "changes"),
    [
        (("optimizer.lr=1e-3", "seed=3", "data.batch_size=64", "validation.num_frames=2"), set()),
        (("remat=all",), {"remat"}),
        (("optimizer.ema_decay=0.5", "data.num_frames=4"), {"optimizer.ema_decay", "data.num_frames"}),
    ],
)
def test_only_what_changes_the_time_of_a_step_is_compared(
    pipeline: Path, overrides: tuple[str, ...], changes: set[str]
):
    base, other = (
        comparable_fields(run_state(load_config(TrainConfig, MOTION, [*_overrides(pipeline), *more])).fields)
        for more in ((), overrides)
    )
    assert {key for key in base if base[key] != other[key]} == changes


def test_size_of_a_checkpoint_is_that_of_its_arrays(pipeline: Path):
    overrides = [*_overrides(pipeline), "init_checkpoint=null", "optimizer.ema_decay=null"]
    config = load_config(TrainConfig, MOTION, overrides)
    params = tiny_models.params(tiny_models.models("motion", tiny_models.ExecutionConfig()))
    sampled = sum(x.size for path, x in params.items() if path.split("/")[0] in ("unet", "pose_encoder"))
    trained = tiny_models.STAGES["motion"].trains(params)
    moments = 3 * sum(x.size for path, x in params.items() if trained[path])  # weights, and AdamW's two means
    size = run_state(config).checkpoint_bytes
    assert 4 * (sampled + moments) <= size <= 4 * (sampled + moments) + 100  # beside them, numbers of steps


def test_cached_latents_have_the_size_that_the_scale_page_says():
    config = load_config(TrainConfig, "sd14/stage2_motion.yaml", [])
    assert run_state(config).latents == LatentBytes(frame=65_536, caption=118_272)


# The benchmarks.


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs scripts/benchmark.py with options."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return lambda *options: run_script(BENCHMARK, *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--field", "seed", "--values", "1"), "--field seed: the fields are"),
        (("--field", "guidance_scale", "--values", "1,two"), "guidance_scale=two"),
        (("--field", "guidance_scale", "--values", "3,3"), "3 is there twice"),
        (("--field", "eta", "--values", "2"), "eta=2.0 is not between 0 and 1"),
        (("--field", "eta", "--values", "0", "--clips", "0"), "--clips 0 must be at least 1"),
        (
            ("--field", "eta", "--values", "0", "height=128"),
            "height=128: the clips that are scored do not depend",
        ),
    ],
)
def test_a_sweep_that_makes_no_sense_prints_one_line(
    benchmark: Callable[..., Any], options: tuple[str, ...], message: str
):
    assert_mistake(benchmark("sweep", *options), message)


@pytest.mark.slow
def test_a_sweep_prints_a_row_for_each_value_and_values_differ(benchmark: Callable[..., Any]):
    options = ("--field", "guidance_scale", "--values", "1,7", "--clips", "1", "num_inference_steps=1")
    run = benchmark("sweep", *options)
    assert run.status == 0, run
    table, differences = run.out.strip().split("\n\n")
    header, rule, *rows = table.splitlines()
    assert header.startswith("| | pose accuracy |")
    assert [row.split("|")[1].strip() for row in rows] == ["guidance_scale=1", "guidance_scale=7"]
    assert rows[0].split("|")[2:] != rows[1].split("|")[2:]
    assert rule.count("|") == rows[0].count("|") == header.count("|")
    assert [line.split("|")[1:3] for line in differences.splitlines()[2:]] == [
        [" guidance_scale=7 ", " guidance_scale=1 "]
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "frames"), [("mini/stage2_motion.yaml", 30), ("mini/stage1_pose.yaml", 1)]
)
def test_a_data_benchmark_writes_what_a_plan_reads(
    benchmark: Callable[..., Any], config: str, frames: int, tmp_path: Path
):
    file = tmp_path / "data.json"
    small = ("--items=2", "--seconds=1", "--batches=2", "--runs=1", "--size", "96", "64")
    run = benchmark("data_rates", "--config", config, "data.path=null", *small, "--json", file)
    assert run.status == 0, run
    figures, chosen = read_data(file), load_config(TrainConfig, config, [])
    check_data(figures, file, tiny_models.STAGES[chosen.stage].dataset, chosen.data)
    assert figures.frames_per_item == frames
    assert figures.bytes_per_item == figures.load_bytes > 100
    assert figures.prepare_seconds is not None


@pytest.mark.release
def test_a_checkpoint_has_the_size_that_the_plan_says(pipeline: Path, tmp_path: Path):
    records = tiny_models.write_videos(tmp_path / "videos", 5)
    own = ("random_init=true", "num_train_steps=1", "data.workers=0", f"data.path={records}")
    overrides = [*_overrides(pipeline), *own, f"output_dir={tmp_path / 'run'}", "data.num_frames=2"]
    config = load_config(TrainConfig, MOTION, overrides)
    train(config)
    saved = read_checksums(epath.Path(config.checkpoint_folder) / "1")
    assert saved is not None
    sizes = (math.prod(x.shape) * jnp.dtype(x.dtype).itemsize for x in saved.arrays.values())
    assert sum(sizes) == run_state(config).checkpoint_bytes
