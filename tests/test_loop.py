"""Whole runs of a tiny model: resumed, on other meshes, with other dtypes; and single steps of training."""

import csv
import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental.compilation_cache import compilation_cache

import tiny_models
from fyp_jax import trees
from fyp_jax.checkpoints.inference import load_inference
from fyp_jax.checkpoints.training import TrainingCheckpoints
from fyp_jax.config import load_config
from fyp_jax.data.config import DataConfig
from fyp_jax.errors import UserError
from fyp_jax.parallel.config import MeshConfig
from fyp_jax.parallel.mesh import make_mesh
from fyp_jax.training import loop
from fyp_jax.training.config import CheckpointConfig, LogConfig, OptimizerConfig, TrainConfig
from fyp_jax.training.init import initialize_weights
from fyp_jax.training.stages import STAGES
from fyp_jax.training.state import TrainState
from fyp_jax.training.step import configured_step

pytestmark = pytest.mark.slow  # seconds each; .ci/run runs them

CLIPS, FRAMES, SIDE = 4, 2, 64


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline without weights, and records of videos."""
    folder = tmp_path_factory.mktemp("world")
    tiny_models.write_pipeline(folder / "pipeline")
    tiny_models.write_videos(folder, 5)
    return folder


@pytest.fixture(autouse=True, scope="module")
def module_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Each run traces its step again, but finds it compiled on disk, as a run does that is resumed."""
    values = {
        "jax_enable_compilation_cache": True,
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("cache")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in values}
    for settings in (values, before):
        for name, value in settings.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        if settings is values:
            yield


def a_config(world: Path, out: Path, **changes: Any) -> TrainConfig:
    data = DataConfig(
        path=str(world / "records" / "captioned_videos"),
        num_frames=FRAMES,
        stride=2,
        height=SIDE,
        width=SIDE,
        batch_size=CLIPS,
        workers=0,
    )
    values = {
        "pretrained": str(world / "pipeline"),
        "random_init": True,
        "output_dir": str(out),
        "num_train_steps": 4,
        "data": data,
        "optimizer": OptimizerConfig(lr=1e-3),
        "mesh": MeshConfig(),
        "checkpoint": CheckpointConfig(save_interval=2),
        "log": LogConfig(log_interval=1),
    }
    return TrainConfig(**{**values, **changes})


def train_on(devices: int, config: TrainConfig, patch: pytest.MonkeyPatch) -> list[str]:
    """Run training on so many devices; gives the column of losses as it was written."""
    make = functools.partial(make_mesh, devices=jax.devices()[:devices])
    patch.setattr(loop, "make_mesh", make)
    loop.train(config)
    return losses(Path(config.output_dir))


def losses(out: Path) -> list[str]:
    with (out / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(len(rows))), "each step once, ascending"
    return [row["loss/all"] for row in rows]


@pytest.fixture(scope="module")
def whole_run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    out = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        return out, train_on(1, a_config(world, out), patch)


def arrays(out: Path) -> dict[str, np.ndarray]:
    _, params, _ = load_inference(out / "checkpoints")
    return flatten_dict(params, sep="/")


def test_run_resumed_after_two_steps_equals_whole_run_bit_for_bit(
    world: Path, whole_run: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out, four = whole_run
    assert train_on(1, a_config(world, tmp_path, num_train_steps=2), monkeypatch) == four[:2]
    assert train_on(1, a_config(world, tmp_path), monkeypatch) == four
    ours, theirs = arrays(tmp_path), arrays(out)
    for path, x in theirs.items():
        np.testing.assert_array_equal(ours[path], x, err_msg=path)


@pytest.mark.release
def test_run_resumed_on_another_mesh_has_the_same_losses(
    world: Path, whole_run: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("fyp_jax.parallel.mesh.MIN_SHARD_SIZE", 64)
    mixed = a_config(world, tmp_path, num_train_steps=2, mesh=MeshConfig(data=2, fsdp=2, frame=2))
    train_on(8, mixed, monkeypatch)
    found = train_on(1, a_config(world, tmp_path), monkeypatch)
    np.testing.assert_allclose([float(x) for x in found], [float(x) for x in whole_run[1]], rtol=1e-5)


def test_checkpoint_of_motion_stage_changes_trainable_parameters_alone(
    world: Path, whole_run: tuple[Path, list[str]]
):
    begin = initialize_weights(a_config(world, Path("x")), STAGES["motion"], None)
    after = arrays(whole_run[0])
    for path, x in begin.trainable.items():
        assert not np.array_equal(after[path], x), f"{path} is not trained"
    for path in after.keys() - begin.trainable.keys():
        np.testing.assert_array_equal(after[path], begin.frozen[path], err_msg=path)


def test_config_of_a_run_reads_back_equal(world: Path, whole_run: tuple[Path, list[str]]):
    out = whole_run[0]
    assert load_config(TrainConfig, out / "config.yaml", []) == a_config(world, out)


def test_finished_run_started_again_trains_nothing(
    world: Path, whole_run: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch, caplog: Any
):
    assert train_on(1, a_config(world, whole_run[0]), monkeypatch) == whole_run[1]
    assert "all of its 4 steps are done" in caplog.text


def test_run_resumed_with_other_data_is_refused(
    world: Path, whole_run: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
):
    with pytest.raises(UserError, match="cannot resume with other data: seed was 0, is 1"):
        train_on(1, a_config(world, whole_run[0], num_train_steps=6, seed=1), monkeypatch)


def test_records_of_another_stage_are_refused(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match="holds captioned_videos, but the pose stage trains on pose_images"):
        train_on(1, a_config(world, tmp_path, stage="pose"), monkeypatch)


@pytest.fixture(scope="module")
def one_device() -> jax.sharding.Mesh:
    return make_mesh(MeshConfig(), jax.devices()[:1])


@pytest.fixture(scope="module")
def stepped(
    world: Path, one_device: jax.sharding.Mesh
) -> tuple[TrainState, Callable[..., Any], Callable[[], TrainState]]:
    """A state, the step of `whole_run`, and a function that makes the state again: a step donates it."""
    config, stage = a_config(world, Path("unused")), STAGES["motion"]
    records = loop._open_records(config, stage)
    models, state, _, _ = loop._initial_state(config, stage, one_device, records)
    step = configured_step(config, models, one_device, state)
    return state, step, lambda: loop._initial_state(config, stage, one_device, records)[1]


def size(tree: Any) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(tree))


def test_optimizer_state_has_twice_the_bytes_of_trainable_parameters(stepped: tuple):
    state, _, _ = stepped
    counters = 2 * 4  # of Adam and of the schedule
    assert size(state.opt_state) == 2 * size(state.trainable) + counters
    assert size(state.trainable) < size(state.frozen) / 2
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(state.trainable))


def test_step_donates_the_whole_state(stepped: tuple, one_device: jax.sharding.Mesh):
    """The memory of the old state is reused for the new one."""
    state, step, _ = stepped
    batch = tiny_models.batch("motion", CLIPS, FRAMES, SIDE)
    memory = step.lower(state, batch, tiny_models.stop_signals(one_device)).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= size(state.trainable) + size(state.opt_state) + size(state.frozen)


def test_loss_depends_on_the_caption_of_every_clip(stepped: tuple, one_device: jax.sharding.Mesh):
    _, step, make = stepped
    batch = tiny_models.batch("motion", CLIPS, FRAMES, SIDE)
    found = set()
    for clip in (None, 0, CLIPS - 1):
        input_ids = np.array(batch.input_ids)
        if clip is not None:
            input_ids[clip] = (input_ids[clip] + 1) % 512
        changed = batch._replace(input_ids=input_ids)
        found.add(float(step(make(), changed, tiny_models.stop_signals(one_device))[1]["loss"]))
    assert len(found) == 3


def test_step_with_nonfinite_gradient_changes_no_parameter(stepped: tuple, one_device: jax.sharding.Mesh):
    _, step, make = stepped
    before, state = make(), make()
    broken = tiny_models.batch("motion", CLIPS, FRAMES, SIDE)
    broken.video[1, 0, 0, 0, 0] = np.nan
    for _ in range(2):
        state, metrics = step(state, broken, tiny_models.stop_signals(one_device))
    assert (int(metrics["skipped"]), int(metrics["skipped_in_row"])) == (2, 2)
    for ours, theirs in zip(
        jax.tree.leaves((state.trainable, state.opt_state)),
        jax.tree.leaves((before.trainable, before.opt_state)),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)
    state, metrics = step(
        state, tiny_models.batch("motion", CLIPS, FRAMES, SIDE), tiny_models.stop_signals(one_device)
    )
    assert (int(metrics["skipped"]), int(metrics["skipped_in_row"]), int(state.step)) == (2, 0, 3)
    assert np.isfinite(metrics["loss"])


def test_ten_nonfinite_steps_in_a_row_end_the_run(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def broken(*arguments: Any) -> Any:
        begin = initialize_weights(*arguments)
        path = next(path for path in begin.frozen if path.startswith("unet/conv_out"))
        begin.frozen[path] = np.full_like(begin.frozen[path], np.nan)
        return begin

    monkeypatch.setattr(loop, "initialize_weights", broken)
    with pytest.raises(UserError, match="step 9: the gradient was not finite 10 times in a row"):
        train_on(
            1,
            a_config(world, tmp_path, num_train_steps=30, checkpoint=CheckpointConfig(save_interval=30)),
            monkeypatch,
        )


@pytest.mark.release
def test_run_in_bfloat16_with_ema_saves_averaged_float32_weights(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Frozen weights are bfloat16, trainable ones stay float32, and sampling gets their moving average."""
    config = a_config(
        world,
        tmp_path,
        num_train_steps=1,
        dtype="bfloat16",
        frozen_dtype="bfloat16",
        remat="all",
        optimizer=OptimizerConfig(lr=1e-3, ema_decay=0.75),
    )
    train_on(1, config, monkeypatch)
    begin, after = initialize_weights(config, STAGES["motion"], None), arrays(tmp_path)
    assert {x.dtype for x in begin.frozen.values()} == {jnp.dtype(jnp.bfloat16)}
    with TrainingCheckpoints(f"{tmp_path}/checkpoints", 1) as checkpoints:
        stage, mesh = STAGES["motion"], make_mesh(MeshConfig(), jax.devices()[:1])
        _, state, _, _ = loop._initial_state(config, stage, mesh, loop._open_records(config, stage))
        saved = checkpoints.restore(loop.mutable_state(state))
    assert saved is not None
    for path, x in begin.trainable.items():
        trained = np.asarray(saved.train["trainable"][path])
        assert trained.dtype == np.float32
        np.testing.assert_allclose(after[path], 0.75 * x + 0.25 * trained, rtol=1e-5, atol=1e-8)
        assert not np.array_equal(trained, x), path


def test_checkpoints_keep_the_newest_and_the_one_with_the_lowest_loss(tmp_path: Path):
    config = tiny_models.UNET
    params = unflatten_dict({path: jnp.zeros(1) for path in ("unet/x", "pose_encoder/x")}, sep="/")
    with TrainingCheckpoints(tmp_path, max_to_keep=2) as checkpoints:
        for step, loss in ((1, 0.5), (2, 0.1), (3, 0.3), (4, np.inf), (5, 0.4)):
            about = {"unet": config.to_json(), "provenance": {}}
            train = {"w": jnp.full(3, step)}
            checkpoints.save(step, train=train, inference=params, data={}, config=about, loss=loss)
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [2, 4, 5]
    with TrainingCheckpoints(tmp_path, max_to_keep=2) as checkpoints:
        saved = checkpoints.restore({"w": jnp.zeros(3)})
        assert saved is not None
        assert (saved.step, saved.train["w"].tolist()) == (5, [5, 5, 5])
        with pytest.raises(trees.TreeMismatch, match="step 5 is of another run: 1 wrong shape"):
            checkpoints.restore({"w": jnp.zeros(4)})


def test_bucket_path_reaches_orbax_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(folder: Any, **_: Any) -> None:
        raise RuntimeError(str(folder))

    monkeypatch.setattr("fyp_jax.checkpoints.training.make_folder", lambda folder: epath.Path(tmp_path))
    monkeypatch.setattr("orbax.checkpoint.CheckpointManager", refuse)
    with pytest.raises(RuntimeError, match="^gs://bucket/run$"):
        TrainingCheckpoints("gs://bucket/run", max_to_keep=1)


def test_untrained_temporal_layers_start_as_the_stage_needs_them(
    world: Path, whole_run: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Untrained ones are 0 for images, and for videos as `zero_init_temporal` says; trained ones stay."""
    from fyp_jax.checkpoints.inference import inference_shapes, save_inference

    def adds_nothing(params: dict[str, Any]) -> bool:
        return not any(np.any(x) for path, x in params.items() if "attn_temp/to_out_0" in path)

    untrained = tiny_models.untrained(inference_shapes(tiny_models.UNET))
    save_inference(tmp_path / "untrained", 0, tiny_models.UNET, untrained, {})
    tiny_models.write_weights(world / "pipeline", tmp_path / "pipeline")
    config = a_config(world, tmp_path, random_init=False, pretrained=str(tmp_path / "pipeline"))
    for zero_init in (True, False):
        start = initialize_weights(
            dataclasses.replace(
                config, init_checkpoint=str(tmp_path / "untrained"), zero_init_temporal=zero_init
            ),
            STAGES["motion"],
            None,
        )
        assert adds_nothing(start.trainable) == zero_init
    pose = dataclasses.replace(config, stage="pose", zero_init_temporal=False)
    assert adds_nothing(initialize_weights(pose, STAGES["pose"], None).frozen)
    trained = initialize_weights(
        dataclasses.replace(config, init_checkpoint=f"{whole_run[0]}/checkpoints"), STAGES["motion"], None
    ).trainable
    theirs = arrays(whole_run[0])
    for path, x in trained.items():
        np.testing.assert_array_equal(x, theirs[path], err_msg=path)
