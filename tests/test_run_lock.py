"""One training at a time in a folder, and a command that ends after an error whatever threads are left."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fyp_jax.errors import UserError
from fyp_jax.training.run_lock import LOCK_FILE, lock_run

HOLDER = """
import sys, time
from pathlib import Path
from fyp_jax.training.run_lock import lock_run
with lock_run(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    return holder


def test_second_run_in_a_folder_is_refused_with_the_holder_until_that_is_killed(tmp_path: Path):
    holder = hold(tmp_path)
    with (
        pytest.raises(UserError, match=rf"another training .* \(process {holder.pid} on .*\); end it"),
        lock_run(tmp_path),
    ):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with lock_run(tmp_path):
        assert f"process {os.getpid()} on" in (tmp_path / LOCK_FILE).read_text()
    assert list(tmp_path.iterdir()) == []


def test_lock_of_a_folder_that_cannot_be_made_is_refused_in_one_line(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"), lock_run(tmp_path / "file" / "run"):
        pass


ENDS = """
import threading, time
from fyp_jax.console import run_console
from fyp_jax.errors import UserError

def main():
    threading.Thread(target=time.sleep, args=(60,)).start()
    raise {error}

run_console(main)
"""


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        ('UserError("the disk is full")', 2, "error: the disk is full\n"),
        ('KeyError("x")', 1, "KeyError: 'x'\n"),
    ],
)
def test_command_ends_after_an_error_though_a_thread_waits(error: str, status: int, says: str):
    found = subprocess.run(
        [sys.executable, "-c", ENDS.format(error=error)], capture_output=True, text=True, timeout=30
    )
    assert found.returncode == status
    assert found.stderr.endswith(says)
