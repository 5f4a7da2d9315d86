"""Real processes, alone and in pairs, that are killed or get SIGTERM, and are resumed."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from test_loop import a_config, losses
from test_shared_memory import left_by

import tiny_models
from conftest import COMPILE_FAST
from faults import TIMEOUT, array_files, flip_bytes, kill_when, wait_for
from fyp_jax.checkpoints.inference import load_inference
from fyp_jax.config import save_config

ROOT = Path(__file__).parent.parent
STEPS = 20

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    tiny_models.write_pipeline(folder / "pipeline")
    tiny_models.write_videos(folder, 5)
    config = a_config(folder, Path("set below"), num_train_steps=STEPS)
    config.data.batch_size, config.checkpoint.save_interval = 8, 6
    save_config(config, folder / "config.yaml")
    return folder


def start(
    world: Path, out: Path, overrides: Sequence[str] = (), devices: int = 1, new_session: bool = False
) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "XLA_FLAGS": f"{COMPILE_FAST} --xla_force_host_platform_device_count={devices}",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(world / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [
        sys.executable,
        "train.py",
        "--config",
        str(world / "config.yaml"),
        f"output_dir={out}",
        *overrides,
    ]
    return subprocess.Popen(
        command,
        env=environment,
        cwd=ROOT,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=new_session,
    )


def start_pair(
    world: Path, out: Path, overrides: Sequence[Sequence[str]] = ((), ())
) -> list[subprocess.Popen[str]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"mesh.coordinator=127.0.0.1:{free.getsockname()[1]}"
    return [
        start(world, out, [coordinator, "mesh.num_processes=2", f"mesh.process_id={i}", *overrides[i]], 4)
        for i in range(2)
    ]


def finish(process: subprocess.Popen[str]) -> str:
    """Wait until the process ends without an error; gives its standard error."""
    stderr = process.communicate(timeout=TIMEOUT)[1]
    assert process.returncode == 0, stderr[-2000:]
    return stderr


def rows(out: Path) -> int:
    """Rows of metrics.csv below its header, which may not be written yet."""
    file = out / "metrics.csv"
    return max(len(file.read_text().splitlines()) - 1, 0) if file.exists() else 0


@pytest.fixture(scope="module")
def undisturbed(world: Path) -> Path:
    out = world / "undisturbed"
    finish(start(world, out))
    return out


def assert_same_run(out: Path, undisturbed: Path) -> None:
    """Bit for bit: the row of each step without times and memory, and the weights at the end."""
    assert len(losses(out)) == STEPS
    columns = slice(0, 9)  # step, losses, norms, learning rate
    ours, theirs = ((x / "metrics.csv").read_text().splitlines() for x in (out, undisturbed))
    assert [row.split(",")[columns] for row in ours] == [row.split(",")[columns] for row in theirs]
    ours, theirs = (flatten_dict(load_inference(x / "checkpoints")[1], sep="/") for x in (out, undisturbed))
    for path, x in theirs.items():
        np.testing.assert_array_equal(ours[path], x, err_msg=path)


def test_killed_run_resumed_equals_undisturbed_run(world: Path, undisturbed: Path, tmp_path: Path):
    process = start(world, tmp_path, ["data.workers=2"])
    kill_when(lambda: rows(tmp_path) >= 9, process)
    assert rows(tmp_path) < STEPS, "the run ended before it was killed"
    finish(start(world, tmp_path))
    assert_same_run(tmp_path, undisturbed)


@pytest.mark.release
def test_run_started_after_its_process_group_was_killed_leaves_no_shared_memory(
    world: Path, undisturbed: Path, tmp_path: Path
):
    process = start(world, tmp_path, ["data.workers=2"], new_session=True)
    wait_for(lambda: rows(tmp_path) >= 3, process)
    assert left_by(process.pid), "workers give their batches in shared memory"
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    left = left_by(process.pid)
    finish(start(world, tmp_path, ["data.workers=1"]))
    assert left, "nothing was left to be removed"
    assert left_by(process.pid) == []
    assert_same_run(tmp_path, undisturbed)


@pytest.mark.release
def test_run_that_is_resumed_again_and_again_keeps_few_checkpoints(world: Path, tmp_path: Path):
    for steps in (7, 13, 17):
        finish(start(world, tmp_path, [f"num_train_steps={steps}"]))
    finish(start(world, tmp_path))
    found = sorted(int(path.name) for path in (tmp_path / "checkpoints").iterdir())
    assert found[-2:] == [18, 20]
    assert len(found) <= 3, "the newest two, and the one with the lowest loss"


@pytest.mark.release
def test_run_with_flipped_bytes_in_its_newest_checkpoint_equals_the_undisturbed_run(
    world: Path, undisturbed: Path, tmp_path: Path
):
    finish(start(world, tmp_path, ["num_train_steps=12"]))
    checkpoints = tmp_path / "checkpoints"
    flip_bytes(array_files(checkpoints / "12" / "train")[0])
    stderr = finish(start(world, tmp_path))
    assert f"{checkpoints}: step 12 is not a complete checkpoint" in stderr
    assert (checkpoints / "12.damaged").is_dir()
    assert_same_run(tmp_path, undisturbed)


def test_second_training_in_one_folder_stops_with_the_first_one_s_id(world: Path, tmp_path: Path):
    first = start(world, tmp_path)
    wait_for(lambda: rows(tmp_path) >= 1, first)
    first.send_signal(signal.SIGSTOP)  # the first may not end before the second begins
    second = start(world, tmp_path)
    stderr = second.communicate(timeout=TIMEOUT)[1]
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 2, stderr
    assert f"another training runs in this folder (process {first.pid} on " in stderr
    finish(first)


@pytest.mark.release
def test_run_after_sigterm_resumed_equals_undisturbed_run(world: Path, undisturbed: Path, tmp_path: Path):
    process = start(world, tmp_path)
    wait_for(lambda: rows(tmp_path) >= 8, process)
    process.send_signal(signal.SIGTERM)
    stderr = finish(process)
    done = rows(tmp_path)
    assert done < STEPS, "the run ended before SIGTERM"
    assert f"SIGTERM: saved step {done}" in stderr
    assert (tmp_path / "checkpoints" / str(done)).is_dir()
    finish(start(world, tmp_path))
    assert_same_run(tmp_path, undisturbed)


@pytest.mark.release
def test_run_killed_while_saving_resumes_from_the_whole_checkpoint(
    world: Path, undisturbed: Path, tmp_path: Path
):
    """Sampling and the next run take the complete checkpoint before the one that was being written."""
    checkpoints = tmp_path / "checkpoints"
    process = start(world, tmp_path)
    wait_for(lambda: (checkpoints / "6").is_dir(), process)
    kill_when(lambda: any(checkpoints.glob("12.orbax-checkpoint-tmp*")), process)
    assert not (checkpoints / "12").exists(), "the checkpoint was complete before the kill"
    assert load_inference(checkpoints)[2]["step"] == 6
    finish(start(world, tmp_path))
    assert_same_run(tmp_path, undisturbed)


@pytest.mark.release
def test_two_processes_have_the_losses_of_one_and_resume_after_a_kill(
    world: Path, undisturbed: Path, tmp_path: Path
):
    """When one of the pair is killed, the other ends; both are resumed."""
    whole, disturbed = tmp_path / "whole", tmp_path / "disturbed"
    for process in start_pair(world, whole):
        finish(process)
    ours, theirs = ([float(x) for x in losses(out)] for out in (whole, undisturbed))
    assert len(ours) == STEPS
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)

    pair = start_pair(world, disturbed)
    wait_for(lambda: rows(disturbed) >= 9, pair[0])
    pair[1].kill()
    pair[1].communicate()
    left = pair[0].communicate(timeout=TIMEOUT)[1]
    assert pair[0].returncode != 0, "it continued alone"
    assert left, "it ended without a message"
    for process in start_pair(world, disturbed):
        finish(process)
    np.testing.assert_allclose([float(x) for x in losses(disturbed)], ours, rtol=1e-6)


@pytest.mark.release
def test_sigterm_to_one_of_two_processes_saves_the_same_step(world: Path, tmp_path: Path):
    pair = start_pair(world, tmp_path)
    wait_for(lambda: rows(tmp_path) >= 3, pair[0])
    pair[1].send_signal(signal.SIGTERM)
    saved = [re.findall(r"SIGTERM: saved step (\d+)", finish(process)) for process in pair]
    assert len(saved[0]) == 1
    assert saved[0] == saved[1]
