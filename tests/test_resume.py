"""Real processes that get SIGTERM at awkward moments, and pairs of which one ends or has no data."""

import shutil
import signal
from pathlib import Path

import pytest
from test_kill import TIMEOUT, finish, rows, start, start_pair, wait_for, world
from test_loop import losses

from fyp_jax.checkpoints.inference import load_inference

__all__ = ["world"]  # a fixture
FEW = 4

pytestmark = pytest.mark.slow


@pytest.mark.release
def test_sigterm_while_compiling_saves_and_ends(world: Path, tmp_path: Path):
    process = start(world, tmp_path)
    wait_for((tmp_path / "config.yaml").exists, process)
    assert rows(tmp_path) == 0
    process.send_signal(signal.SIGTERM)
    stderr = finish(process)
    done = len(losses(tmp_path))
    assert done <= 2, "it continued after the stop signal"
    assert f"SIGTERM: saved step {done}" in stderr
    assert load_inference(tmp_path / "checkpoints")[2]["step"] == done


@pytest.mark.release
def test_sigterm_while_the_last_checkpoint_is_written_finishes_it(world: Path, tmp_path: Path):
    process = start(world, tmp_path, [f"num_train_steps={FEW}"])
    wait_for(lambda: any((tmp_path / "checkpoints").glob(f"{FEW}.orbax-checkpoint-tmp*")), process)
    process.send_signal(signal.SIGTERM)
    finish(process)
    assert load_inference(tmp_path / "checkpoints")[2]["step"] == FEW


@pytest.mark.release
def test_process_whose_coordinator_is_killed_ends(world: Path, tmp_path: Path):
    pair = start_pair(world, tmp_path)
    wait_for(lambda: rows(tmp_path) >= 2, pair[0])
    pair[0].kill()
    pair[0].communicate()
    stderr = pair[1].communicate(timeout=TIMEOUT)[1]
    assert pair[1].returncode != 0, "it continued alone"
    assert "another task died" in stderr


def test_two_processes_end_where_one_has_too_many_corrupt_records(world: Path, tmp_path: Path):
    """Each prints one line. No step that repeats the last batch is saved."""
    corrupt = tmp_path / "corrupt"
    shutil.copytree(world / "records", corrupt)
    for shard in corrupt.rglob("*array_record*"):
        data = bytearray(shard.read_bytes())
        middle = slice(len(data) // 4, 3 * len(data) // 4)
        data[middle] = bytes(len(data[middle]))
        shard.write_bytes(data)
    pair = start_pair(world, tmp_path / "run", [[], [f"data.path={corrupt}"]])
    stderr = [process.communicate(timeout=TIMEOUT)[1] for process in pair]
    assert [process.returncode for process in pair] == [2, 2]
    errors = [[line for line in text.splitlines() if "error: " in line] for text in stderr]
    assert [len(lines) for lines in errors] == [1, 1], stderr
    assert "the run ends: another process has no more data" in errors[0][0]
    assert f"{corrupt}: " in errors[1][0]
    assert "records are corrupt" in errors[1][0]
    assert not any((tmp_path / "run" / "checkpoints").glob("[0-9]*"))
