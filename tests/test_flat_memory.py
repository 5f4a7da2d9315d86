"""A long training of the bundled model holds no more memory, files and shared memory late than early."""

import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from test_kill import ROOT, rows

import tiny_models
from faults import TIMEOUT, wait_for
from fyp_jax.data import shared_memory

STEPS, EVERY = 2000, 10
EARLY, LATE = range(300, 400, EVERY), range(1900, 2000, EVERY)
"""Steps at which use is measured. At the first of them a checkpoint is being written."""

pytestmark = [
    pytest.mark.release,
    pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="/proc tells no memory here"),
]


class Use(NamedTuple):
    """What a process and its children hold."""

    resident_bytes: float
    """The share of each process, so that memory of two counts once. Pages of files do not count: other
    programs on the machine share libraries, and the share changes as these start and end."""
    open_files: float
    shared_memory_bytes: float


def use_of(pid: int) -> Use:
    group = [pid, *children(pid)]
    segments = shared_memory.FOLDER.glob(f"*fyp_jax-*-{pid}-*")
    return Use(
        sum(proportional_bytes(x) for x in group),
        sum(len(os.listdir(f"/proc/{x}/fd")) for x in group),
        sum(path.stat().st_size for path in segments),
    )


def children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(x) for x in (task / "children").read_text().split()]
    return [y for x in found for y in (x, *children(x))]


def proportional_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    shares = [line.split() for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:"))]
    assert len(shares) == 2, "Linux 5.4 or later tells these shares"
    return sum(int(kilobytes) * 1024 for _, kilobytes, _ in shares)


def start(folder: Path) -> subprocess.Popen[str]:
    data = tiny_models.write_videos(folder, 8, side=128)
    overrides = [
        *("pretrained=mini", "init_checkpoint=null", f"num_train_steps={STEPS}", f"log.log_interval={EVERY}"),
        *(f"data.path={data}", "data.num_frames=2", "data.batch_size=1", "data.workers=2"),
        *("checkpoint.save_interval=100", f"output_dir={folder / 'run'}"),
    ]
    command = [sys.executable, "train.py", "--config", "configs/mini/stage2_motion.yaml", *overrides]
    with (folder / "log").open("w") as log:  # its progress bar would fill a pipe
        return subprocess.Popen(command, cwd=ROOT, text=True, stdout=log, stderr=log)


def test_use_at_step_1900_is_within_3_percent_of_that_at_step_300(tmp_path: Path):
    process = start(tmp_path)
    found: dict[range, list[Use]] = {EARLY: [], LATE: []}
    for step in range(EVERY, STEPS, EVERY):
        wait_for(lambda step=step: rows(tmp_path / "run") >= step // EVERY, process)
        for steps, uses in found.items():
            if step in steps:
                uses.append(use_of(process.pid))
    assert process.wait(TIMEOUT) == 0, (tmp_path / "log").read_text()[-2000:]
    early, late = (Use(*map(statistics.median, zip(*uses, strict=True))) for uses in found.values())
    print(early, late)  # noqa: T201
    assert early.shared_memory_bytes > 0, "workers hand their batches over in shared memory"
    for name, x, y in zip(Use._fields, early, late, strict=True):
        assert y <= 1.03 * x, f"{name}: {x} at step {EARLY[0]}, {y} at step {LATE[0]}"
