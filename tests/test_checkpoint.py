"""Checkpoints that are damaged, incomplete or of another run are refused in one line; the latest complete one
is used."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath

import tiny_models
from faults import TIMEOUT, array_files, delete, files, flip_byte, full_disk, time_limit, truncate
from fyp_jax.checkpoints.checksums import CHANGED, array_checksums, check_array, is_finite, read_checksums
from fyp_jax.checkpoints.inference import (
    inference_shapes,
    load_inference,
    open_inference,
    save_inference,
)
from fyp_jax.checkpoints.manager import CheckpointError, resolve_step
from fyp_jax.checkpoints.training import TrainingCheckpoints
from fyp_jax.convert.lazy import read_tree
from fyp_jax.interrupts import interruptible
from fyp_jax.models.random_params import random_params
from fyp_jax.training.config import OptimizerConfig
from fyp_jax.training.optimizer import make_optimizer
from fyp_jax.trees import TreeMismatch

TRAIN = {"trainable": {"w": jax.random.normal(jax.random.key(0), (6000,))}, "step": jnp.asarray(0)}


def write(folder: Path, *steps: int) -> Path:
    inference = random_params(inference_shapes(tiny_models.UNET), seed=0)
    with TrainingCheckpoints(folder, max_to_keep=len(steps)) as checkpoints:
        for step in steps:
            checkpoints.save(
                step,
                train={**TRAIN, "step": jnp.asarray(step)},
                inference=inference,
                data={"step": step},
                config={"unet": tiny_models.UNET.to_json(), "provenance": {}},
                loss=1.0,
            )
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("checkpoints"), 1, 2)


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "checkpoints"))


def save(checkpoints: TrainingCheckpoints, step: int, loss: float = 1.0, **changes: Any) -> None:
    items = {
        "train": TRAIN,
        "inference": {"x": jnp.zeros(3)},
        "data": {"step": step},
        "config": {},
        "loss": loss,
    }
    checkpoints.save(step, **{**items, **changes})


def steps(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def restore(folder: Path, train: Any = TRAIN) -> Any:
    with TrainingCheckpoints(folder, max_to_keep=2) as checkpoints:
        return checkpoints.restore(train)


def test_restore_gives_the_latest_step(folder: Path):
    restored = restore(folder)
    assert (restored.step, int(restored.train["step"]), restored.data) == (2, 2, {"step": 2})
    np.testing.assert_array_equal(restored.train["trainable"]["w"], TRAIN["trainable"]["w"])


def test_restore_without_checkpoints_gives_none(tmp_path: Path):
    assert restore(tmp_path / "new") is None


@pytest.mark.parametrize("state", ["complete", "empty", "incomplete"])
def test_step_that_was_not_renamed_is_ignored(folder: Path, state: str):
    """Orbax writes a step under another name and renames it when it is complete."""
    leftover = folder / "3.orbax-checkpoint-tmp-7"
    if state == "empty":
        leftover.mkdir()
    elif state == "complete":
        shutil.copytree(folder / "2", leftover)
    else:
        shutil.copytree(folder / "2" / "train", leftover / "train.orbax-checkpoint-tmp-8")
    assert load_inference(folder)[2]["step"] == 2
    assert restore(folder).step == 2


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "no train": lambda step: delete(step / "train"),
    "no arrays": lambda step: delete(step / "train" / "d"),
    "arrays cut": lambda step: [truncate(path) for path in files(step / "train" / "d")],
    "one byte of an array": lambda step: flip_byte(array_files(step / "train")[0]),
    "names cut": lambda step: truncate(step / "train" / "_METADATA"),
    "no data": lambda step: delete(step / "data"),
    "data cut": lambda step: [truncate(path) for path in files(step / "data")],
    "another position": lambda step: (step / "data" / "metadata").write_text('{"step": 3}'),
    "no checksums": lambda step: delete(step / "checksums"),
    "another checksum": lambda step: flip_digit(step / "checksums" / "metadata"),
    "empty": lambda step: [delete(path) for path in files(step)],
    "no files and no folders": lambda step: [delete(path) for path in step.iterdir()],
    "all cut": lambda step: [truncate(path) for path in files(step)],
}


def flip_digit(path: Path) -> None:
    text = path.read_text()
    i = next(i for i, x in enumerate(text) if x.isdigit())
    path.write_text(text[:i] + str((int(text[i]) + 1) % 10) + text[i + 1 :])


@pytest.mark.parametrize("damage", DAMAGE)
def test_restore_after_damage_gives_the_step_before_and_says_so(
    folder: Path, damage: str, caplog: pytest.LogCaptureFixture
):
    DAMAGE[damage](folder / "2")
    restored = restore(folder)
    assert (restored.step, restored.data) == (1, {"step": 1})
    assert f"{folder}: step 2 is not a complete checkpoint" in caplog.text
    assert all("\n" not in record.message for record in caplog.records)
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2.damaged"]


def test_restore_needs_no_names_of_arrays_beside_those_of_the_checksums(folder: Path):
    delete(folder / "2" / "train" / "_METADATA")
    restored = restore(folder)
    assert restored.step == 2
    np.testing.assert_array_equal(restored.train["trainable"]["w"], TRAIN["trainable"]["w"])


def test_restore_where_every_step_is_damaged_stops_in_one_line_and_moves_nothing(folder: Path):
    for step in ("1", "2"):
        flip_byte(array_files(folder / step / "train")[0])
    with pytest.raises(CheckpointError, match=r"step 2 is not a complete checkpoint \(.*no older one is"):
        restore(folder)
    assert (folder / "1").is_dir()
    assert (folder / "2").is_dir()


def test_array_that_differs_from_its_checksum_is_believed_only_without_verification(folder: Path):
    """Here the checksum is another, so that the file format notices nothing."""
    set_another_checksum(folder / "2", "train/trainable/w")
    with TrainingCheckpoints(folder, max_to_keep=2, verify=False) as checkpoints:
        restored = checkpoints.restore(TRAIN)
    assert restored is not None
    assert restored.step == 2
    assert restore(folder).step == 1


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({**TRAIN, "average": {"w": jnp.arange(3.0)}}, r"1 missing \(average/w\)$"),
        ({"step": jnp.asarray(0)}, r"1 unexpected \(trainable/w\)$"),
        (
            {**TRAIN, "trainable": {"w": jnp.arange(3.0)}},
            r"1 wrong shape \(trainable/w is \(6000,\) but should",
        ),
    ],
    ids=["more", "less", "another shape"],
)
def test_restore_with_other_arrays_lists_the_differences(folder: Path, other: Any, says: str):
    with pytest.raises(TreeMismatch, match=f"^{re.escape(str(folder))}: step 2 is of another run: {says}"):
        restore(folder, other)


def test_restore_of_weights_alone_says_how_to_use_them(tmp_path: Path):
    save_inference(
        tmp_path, 7, tiny_models.UNET, random_params(inference_shapes(tiny_models.UNET), seed=0), {}
    )
    with pytest.raises(
        CheckpointError,
        match=f"step 7 holds no training state .* set init_checkpoint={re.escape(str(tmp_path))}",
    ):
        restore(tmp_path)


def test_optimizer_state_is_restored_with_its_structure(tmp_path: Path):
    """The state has tuples, named and unnamed, some of them empty; Orbax saves these as lists and dicts."""
    optimizer = make_optimizer(OptimizerConfig(), 10)
    train = {"trainable": TRAIN["trainable"], "opt_state": optimizer.init(TRAIN["trainable"])}
    with TrainingCheckpoints(tmp_path, max_to_keep=1) as checkpoints:
        save(checkpoints, 1, train=train)
    restored = restore(tmp_path, train)
    assert jax.tree.structure(restored.train) == jax.tree.structure(train)


# ---- which step a name means


@pytest.mark.parametrize(
    ("name", "step", "found"),
    [
        ("run/checkpoints", None, 20),
        ("run/checkpoints", 5, 5),
        ("run", None, 20),
        ("run", 5, 5),
        ("run/checkpoints/5", None, 5),
        ("run/checkpoints/5/", 5, 5),
    ],
)
def test_step_is_found_from_a_run_its_checkpoints_or_one_step(
    tmp_path: Path, name: str, step: int | None, found: int
):
    """The run's folder also has logs and samples, whose numbers are no steps."""
    for folder in ("checkpoints/5/inference", "checkpoints/20/inference", "samples/400", "0001"):
        (tmp_path / "run" / folder).mkdir(parents=True)
    assert resolve_step(f"{tmp_path}/{name}", step) == (epath.Path(tmp_path / "run" / "checkpoints"), found)


@pytest.mark.parametrize("name", ["run/checkpoints", "run"])
def test_step_that_is_not_there_lists_those_that_are(tmp_path: Path, name: str):
    for step in (5, 20, 100):
        (tmp_path / "run" / "checkpoints" / str(step)).mkdir(parents=True)
    with pytest.raises(
        CheckpointError, match=rf"^{tmp_path}/{name}: has no step 7 \(there are: 100, 20, 5\)$"
    ):
        resolve_step(tmp_path / name, 7)


@pytest.mark.parametrize(
    ("made", "name", "step", "message"),
    [
        ("5/inference", "5", 20, "is step 5, not step 20"),
        ("best/inference", "best", None, "name the folder by its step number"),
        ("runs/0000", "runs", None, "no checkpoint in it"),
        ("runs/checkpoints", "runs", None, "no checkpoint in it"),
        ("pipe/model_index.json", "pipe", None, "is a pipeline folder: give it as pretrained=FOLDER"),
        ("ck/pytorch_model.bin", "ck", None, "holds PyTorch weights: scripts/import_pytorch.py makes"),
        ("ds/global_step9/mp_rank_00", "ds", None, "is a checkpoint of DeepSpeed; .* zero_to_fp32.py"),
    ],
)
def test_folder_that_means_no_step_is_refused(
    tmp_path: Path, made: str, name: str, step: int | None, message: str
):
    (tmp_path / made).mkdir(parents=True)
    with pytest.raises(CheckpointError, match=message):
        resolve_step(tmp_path / name, step)


def test_file_as_a_checkpoint_is_named(tmp_path: Path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"no such folder \(it is a file; .*pretrained=FILE"):
        resolve_step(tmp_path / "model.safetensors")


def test_weights_of_one_step_are_read_from_every_form(written: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(written, run / "checkpoints")
    for name, step in ((run, 1), (run / "checkpoints", 1), (run / "checkpoints" / "1", None)):
        assert load_inference(name, step=step)[2]["step"] == 1


def test_run_of_three_processes_keeps_the_latest_steps_and_the_one_with_the_lowest_loss(tmp_path: Path):
    """The lowest loss is in a step that the first process wrote."""
    losses = {1: 3.0, 2: 0.5, 3: float("nan"), 4: 2.0, 5: 4.0, 6: 1.0, 7: 2.0}
    for process in ((1, 2, 3), (4, 5), (6, 7)):
        with TrainingCheckpoints(tmp_path, max_to_keep=2) as checkpoints:
            for step in process:
                save(checkpoints, step, losses[step])
    assert steps(tmp_path) == [2, 6, 7]


def test_steps_of_an_earlier_version_without_checksums_do_not_stay_for_ever(tmp_path: Path):
    with TrainingCheckpoints(tmp_path, max_to_keep=3) as checkpoints:
        for step in (1, 2, 3):
            save(checkpoints, step)
    for step in (1, 2, 3):
        delete(tmp_path / str(step) / "checksums")
    with TrainingCheckpoints(tmp_path, max_to_keep=1) as checkpoints:
        save(checkpoints, 4)
    assert steps(tmp_path) == [4]


def test_step_begins_to_be_written_when_the_one_before_is_whole(tmp_path: Path, monkeypatch: Any):
    """However slow the disk is, a kill while step N is written leaves step N - 1."""
    with TrainingCheckpoints(tmp_path, max_to_keep=9) as checkpoints:
        finalize = checkpoints._manager._finalize
        monkeypatch.setattr(checkpoints._manager, "_finalize", lambda *x: (time.sleep(0.3), finalize(*x)))
        for step in (1, 2, 3):
            save(checkpoints, step)
            assert steps(tmp_path)[: step - 1] == list(range(1, step))


def test_unfinished_steps_of_an_earlier_process_are_removed(folder: Path):
    shutil.copytree(folder / "2", folder / "3.orbax-checkpoint-tmp-7")
    with TrainingCheckpoints(folder, max_to_keep=2) as checkpoints:
        save(checkpoints, 4)
    assert not list(folder.glob("3*"))


def test_restore_where_the_only_step_is_unfinished_says_that_the_run_starts_anew(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    (tmp_path / "5.orbax-checkpoint-tmp").mkdir()
    assert restore(tmp_path) is None
    assert "the only checkpoint, of step 5, was not complete" in caplog.text


@pytest.mark.parametrize("item", ["train", "inference"])
def test_step_that_is_not_finite_is_not_saved(tmp_path: Path, item: str):
    with TrainingCheckpoints(tmp_path, max_to_keep=2) as checkpoints:
        save(checkpoints, 1)
        with pytest.raises(
            CheckpointError, match="step 2 is not saved: .*not finite; the last whole step is 1"
        ):
            save(checkpoints, 2, **{item: {"x": jnp.asarray([0.0, jnp.nan])}})
    assert steps(tmp_path) == [1]


def test_step_that_is_not_finite_is_not_restored(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """An earlier version saved it: this one would not."""
    monkeypatch.setattr("fyp_jax.checkpoints.checksums.is_finite", lambda data: True)
    with TrainingCheckpoints(folder, max_to_keep=9) as checkpoints:
        save(checkpoints, 3, train={**TRAIN, "trainable": {"w": jnp.full(6000, jnp.inf)}})
    monkeypatch.undo()
    assert restore(folder).step == 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    ("value", "finite"), [(3e4, True), (np.inf, False), (-np.inf, False), (np.nan, False)]
)
def test_is_finite_is_false_for_one_number_that_is_not(dtype: str, value: float, finite: bool):
    data = np.full((300, 7), 3e4).astype(jnp.dtype(dtype))
    data[17, 3] = value
    assert is_finite(data) is finite


def test_sum_that_overflows_is_no_number_that_is_not_finite():
    assert is_finite(np.full(1000, 3e38, np.float32))


def test_checksums_of_a_sharded_array_fit_the_whole_array(tmp_path: Path):
    """It was saved on eight devices, with two copies of each shard, and is restored on one."""
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    whole = jax.random.normal(jax.random.key(1), (8, 6))
    sharded = jax.device_put(whole, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("a")))
    (found,) = array_checksums({"x": sharded}).values()
    assert list(found.pieces) == [((2 * i, 2 * i + 2), (0, 6)) for i in range(4)]
    assert check_array(whole, found) == 0
    assert check_array(whole.at[3, 5].add(1e-6), found) == CHANGED
    with TrainingCheckpoints(tmp_path, max_to_keep=1) as checkpoints:
        save(checkpoints, 1, train={"x": sharded})
    restored = restore(tmp_path, {"x": jnp.zeros((8, 6))})
    np.testing.assert_array_equal(restored.train["x"], whole)


def test_full_disk_is_one_line_with_the_last_whole_step_and_leaves_nothing_unfinished(tmp_path: Path):
    says = f"^{re.escape(str(tmp_path))}: step 2 cannot be written .* last whole step is 1, and the same"
    with TrainingCheckpoints(tmp_path, max_to_keep=2) as checkpoints:
        save(checkpoints, 1)
        checkpoints.wait()
        with full_disk(), pytest.raises(CheckpointError, match=says) as caught:  # noqa: PT012
            save(checkpoints, 2)
            checkpoints.wait()
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_a_write_that_fails_is_reported_between_two_steps_and_not_only_by_the_next_save(tmp_path: Path):
    with TrainingCheckpoints(tmp_path, max_to_keep=2) as checkpoints:
        checkpoints.between_steps()  # nothing is being written
        save(checkpoints, 1)
        while not (tmp_path / "1").exists():
            checkpoints.between_steps()
        with full_disk(), time_limit(60), pytest.raises(CheckpointError, match="step 2 cannot be written"):  # noqa: PT012
            save(checkpoints, 2)
            while True:
                checkpoints.between_steps()
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


COMMAND = """
import sys
from pathlib import Path

import jax

from faults import array_files, flip_bytes, full_disk
from fyp_jax.checkpoints.training import TrainingCheckpoints
from fyp_jax.console import run_console

FOLDER, KEYS = Path(sys.argv[1]), jax.random.split(jax.random.key(0), 100)
ARRAYS = {f"w{i}": jax.random.normal(key, (200, 300)) for i, key in enumerate(KEYS)}


def save(step):
    with TrainingCheckpoints(FOLDER, max_to_keep=2) as checkpoints:
        checkpoints.save(step, train=ARRAYS, inference=ARRAYS, data={"a": 1}, config={"b": 1}, loss=1.0)


def main():
    CODE


run_console(main)
"""
SAVE_ON_A_FULL_DISK = "with full_disk(50_000): save(1)"
RESTORE_DAMAGED = """save(1)
    for file in array_files(FOLDER / "1" / "train"):
        flip_bytes(file)
    with TrainingCheckpoints(FOLDER, max_to_keep=2) as checkpoints:
        checkpoints.restore(ARRAYS)"""


@pytest.mark.parametrize(
    ("code", "says"),
    [(SAVE_ON_A_FULL_DISK, "step 1 cannot be written ("), (RESTORE_DAMAGED, "step 1 is not a complete")],
    ids=["full disk", "damaged"],
)
def test_command_that_fails_at_one_of_many_arrays_prints_no_traceback(tmp_path: Path, code: str, says: str):
    """Orbax's other reads and writes fail, too; Python printed hundreds of tracebacks of them."""
    root = Path(__file__).parents[1]
    found = subprocess.run(
        [sys.executable, "-c", COMMAND.replace("CODE", code), tmp_path],
        env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    *warnings, line = found.stderr.splitlines()
    assert all(warning.startswith("WARNING:") for warning in warnings)
    assert len(warnings) <= 1
    assert line.startswith(f"error: {tmp_path}: {says}")
    assert found.returncode == 2


def test_interrupt_waits_for_the_step_that_is_written_and_names_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with pytest.raises(KeyboardInterrupt), TrainingCheckpoints(tmp_path, max_to_keep=2) as checkpoints:  # noqa: PT012
        save(checkpoints, 3)
        raise KeyboardInterrupt
    assert caplog.messages[-1] == (
        f"{tmp_path}: the last whole step is 3, and the same command resumes from it"
    )


def test_interrupt_while_the_last_step_is_written_finishes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    with pytest.raises(KeyboardInterrupt), TrainingCheckpoints(tmp_path, max_to_keep=2) as checkpoints:  # noqa: PT012
        save(checkpoints, 3)
        manager = checkpoints._manager
        close = manager.close

        def interrupted_once() -> None:
            monkeypatch.setattr(manager, "close", close)
            raise KeyboardInterrupt

        monkeypatch.setattr(manager, "close", interrupted_once)
    assert [path.name for path in tmp_path.iterdir()] == ["3"]
    assert caplog.messages[-1].endswith("the last whole step is 3, and the same command resumes from it")


def test_ctrl_c_in_the_middle_of_a_save_leaves_nothing_unfinished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """It is raised when all writes have started, so that they are waited for."""
    async_save = ocp.StandardCheckpointHandler.async_save
    signals = [signal.SIGINT]

    async def with_ctrl_c(self: Any, *args: Any, **kwargs: Any) -> Any:
        if signals:
            signal.raise_signal(signals.pop())
        return await async_save(self, *args, **kwargs)

    monkeypatch.setattr(ocp.StandardCheckpointHandler, "async_save", with_ctrl_c)
    with (
        pytest.raises(KeyboardInterrupt),
        interruptible(),
        TrainingCheckpoints(tmp_path, max_to_keep=2) as checkpoints,
    ):
        save(checkpoints, 1)
    assert not signals
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    assert caplog.messages[-1].endswith("the last whole step is 1, and the same command resumes from it")


def set_another_checksum(step: Path, path: str) -> None:
    found = read_checksums(epath.Path(step))
    assert found is not None
    pieces = {bounds: crc ^ 1 for bounds, crc in found.arrays[path].pieces.items()}
    found.arrays[path] = found.arrays[path]._replace(pieces=pieces)
    (step / "checksums" / "metadata").write_text(json.dumps(found.to_json()))


def assert_load_is_refused_in_one_line(folder: Path, says: str) -> None:
    """By both ways of reading weights; `says` is a pattern."""
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(folder))}: {says}") as caught:
        load_inference(folder)
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(folder))}: {says}"):
        read_tree(open_inference(folder).models)


def test_load_of_weights_with_a_changed_byte_is_refused_in_one_line(folder: Path):
    flip_byte(array_files(folder / "2" / "inference")[0])
    assert_load_is_refused_in_one_line(folder, "step 2 is damaged: ")


def test_load_of_an_array_that_differs_from_its_checksum_is_refused_unless_told(folder: Path):
    set_another_checksum(folder / "2", "inference/unet/conv_in/bias")
    assert_load_is_refused_in_one_line(folder, "step 2 is damaged: unet/conv_in/bias is not what was saved$")
    load_inference(folder, verify=False)


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path):
    params = random_params(inference_shapes(tiny_models.UNET), seed=0)
    params["unet"]["conv_in"]["bias"] = params["unet"]["conv_in"]["bias"] * np.nan
    with pytest.raises(
        CheckpointError, match="step 7 is not saved: inference/unet/conv_in/bias holds a number"
    ):
        save_inference(tmp_path, 7, tiny_models.UNET, params, {})


PAIR = """
import sys
import jax, numpy as np
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
number, address, folder = int(sys.argv[1]), *sys.argv[2:]
jax.distributed.initialize(address, 2, number)
from fyp_jax.checkpoints.training import TrainingCheckpoints

mesh = jax.make_mesh((4,), ("a",))
values = np.random.default_rng(0).standard_normal((4096, 8)).astype(np.float32)

def place(x, *axes):
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

train = {"sharded": place(values, "a"), "replicated": place(values[:7])}
with TrainingCheckpoints(folder, max_to_keep=2) as checkpoints:
    restored = checkpoints.restore(train)
    step = 0 if restored is None else restored.step
    print("from", step)
    for x in () if restored is None else restored.train["sharded"].addressable_shards:
        assert np.array_equal(x.data, values[x.index])
    rest = {"inference": {"x": place(values[:3])}, "config": {}, "loss": 1.0}
    for done in (step + 1, step + 2):
        checkpoints.save(done, train=train, data={"step": done}, **rest)
"""


@pytest.mark.slow
def test_two_processes_check_shards_of_both_and_fall_back_together(tmp_path: Path):
    def run_pair() -> list[str]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        command = [sys.executable, "-c", PAIR]
        pair = [
            subprocess.Popen([*command, str(i), address, str(tmp_path)], stdout=subprocess.PIPE, text=True)
            for i in range(2)
        ]
        outputs = [process.communicate(timeout=TIMEOUT)[0] for process in pair]
        assert [process.returncode for process in pair] == [0, 0]
        return [line for text in outputs for line in text.splitlines() if line.startswith("from")]

    assert run_pair() == ["from 0"] * 2
    assert run_pair() == ["from 2"] * 2
    flip_byte(array_files(tmp_path / "4" / "train")[0])
    assert run_pair() == ["from 3"] * 2
    assert (tmp_path / "4.damaged").is_dir()
