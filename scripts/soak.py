"""Train the bundled model while faults happen to it, and compare with a run that was left in peace.

    python scripts/soak.py --minutes 20 --seed 0 [--out runs/soak]

Each round starts the same training and does something to it, at random but the same for a seed: it kills the
process (also while it saves, also with all of its workers), sends SIGTERM or Ctrl-C, takes the disk away, or
flips a byte of the newest checkpoint before the start. After each round, every row of metrics.csv must equal
that of the undisturbed run, bit for bit, and no process, temporary file or superfluous checkpoint may be
left. Ends with status 1 at the first difference. The last lines are a table of what was done.
"""

import argparse
import collections
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from fyp_jax.console import run_console
from fyp_jax.data.shared_memory import FOLDER as SHARED_MEMORY
from fyp_jax.data.shared_memory import remove_orphans
from fyp_jax.errors import UserError

ROOT = Path(__file__).parents[1]
STEPS, KEEP = 24, 2
TRAINING = [
    *("--config", str(ROOT / "configs" / "mini" / "stage2_motion.yaml")),
    *("pretrained=mini", "init_checkpoint=null"),
    *(f"num_train_steps={STEPS}", "data.num_frames=2", "data.batch_size=2", "data.workers=1"),
    *("checkpoint.save_interval=4", f"checkpoint.max_to_keep={KEEP}", "log.log_interval=1"),
]
COMPARED_COLUMNS = 9
"""Of metrics.csv: step, losses, norms, learning rate. The others are times and memory."""
SECONDS_WITHOUT_A_ROW, SECONDS_FOR_WORKERS = 400, 5
DISK_BYTES = 300_000
"""No file of a training on the full disk may be larger: a row of metrics.csv fits, an array does not."""


class Fault(NamedTuple):
    """Something that is done to a training."""

    strike: Callable[["Round"], None]
    statuses: tuple[int, ...]
    """What the training may end with; it may also be done before the fault."""
    before: Callable[["Round"], None] = lambda _: None
    """What is done before it starts."""
    full_disk: bool = False


class Round:
    """One start of the training, and what was done to it."""

    def __init__(self, out: Path, chance: random.Random):
        self.out, self.chance = out, chance
        self.first_row = rows(out)
        self.process: subprocess.Popen[bytes]

    def run(self, fault: Fault) -> None:
        """Start, strike, and wait for the end. Raises UserError where it does not end as it should."""
        fault.before(self)
        self.process = start(self.out, fault.full_disk)
        fault.strike(self)
        errors = self.wait_for_the_end()
        status = self.process.returncode
        if status not in (0, *fault.statuses) or "Traceback" in errors:
            raise UserError(f"the training ended with status {status}: {errors[-2000:]}")

    def wait_for_the_end(self) -> str:
        """The errors that it wrote. Raises UserError where it hangs, which a slow machine does not."""
        while True:
            before = rows(self.out)
            try:
                self.process.wait(timeout=SECONDS_WITHOUT_A_ROW)
                return errors_file(self.out).read_text(errors="replace")
            except subprocess.TimeoutExpired as error:
                if rows(self.out) == before:
                    os.killpg(self.process.pid, signal.SIGKILL)
                    raise UserError(f"no step in {SECONDS_WITHOUT_A_ROW} seconds, and no end") from error

    def wait(self, condition: Callable[[], bool]) -> None:
        """Wait until something holds or the training is over."""
        until = time.monotonic() + SECONDS_WITHOUT_A_ROW
        while not condition() and self.process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)

    def wait_for_a_moment(self) -> None:
        """Wait for a row of this round, or for the middle of a save, and then a little."""
        if self.chance.random() < 0.5:
            self.wait(lambda: rows(self.out) >= self.first_row + self.chance.randrange(1, 8))
        else:
            self.wait(lambda: any((self.out / "checkpoints").glob("*.orbax-checkpoint-tmp*")))
        time.sleep(self.chance.random() * 0.5)

    def send(self, number: int, group: bool = False) -> None:
        """Wait for a moment, and send a signal."""
        self.wait_for_a_moment()
        if self.process.poll() is None:
            (os.killpg if group else os.kill)(self.process.pid, number)

    def flip_byte(self) -> None:
        """Invert a bit of one file of the newest checkpoint."""
        steps = step_folders(self.out)
        if steps:
            files = sorted(path for path in steps[-1].rglob("*") if path.is_file() and path.stat().st_size)
            file = self.chance.choice(files)
            content = bytearray(file.read_bytes())
            content[self.chance.randrange(len(content))] ^= 1 << self.chance.randrange(8)
            file.write_bytes(content)


FAULTS = {
    "nothing": Fault(lambda _: None, (0,)),
    "kill -9": Fault(lambda x: x.send(signal.SIGKILL), (-signal.SIGKILL,)),
    "kill -9 of the group": Fault(lambda x: x.send(signal.SIGKILL, group=True), (-signal.SIGKILL,)),
    "SIGTERM": Fault(lambda x: x.send(signal.SIGTERM), (-signal.SIGTERM,)),  # before there is a handler
    "Ctrl-C": Fault(lambda x: x.send(signal.SIGINT, group=True), (130, -signal.SIGINT)),
    "full disk": Fault(lambda _: None, (2,), full_disk=True),
    # 2: there was one checkpoint only, and it is damaged
    "flipped byte": Fault(lambda x: x.send(signal.SIGTERM), (2, -signal.SIGTERM), Round.flip_byte),
}


def start(out: Path, full_disk: bool) -> subprocess.Popen[bytes]:
    def limit() -> None:
        if full_disk:
            resource.setrlimit(resource.RLIMIT_FSIZE, (DISK_BYTES, DISK_BYTES))

    command = [sys.executable, str(ROOT / "train.py"), *TRAINING]
    with errors_file(out).open("w") as errors:  # a pipe could be full before it is read
        return subprocess.Popen(
            [*command, f"data.path={records(out)}", f"output_dir={out}"],
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
            preexec_fn=limit,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )


def errors_file(out: Path) -> Path:
    """What the training of a folder wrote to standard error, in its last round."""
    return out.parent / f"{out.name}-errors.txt"


def records(out: Path) -> Path:
    return out.parent / "records" / "captioned_videos"


def make_records(folder: Path) -> None:
    """A few videos of the synthetic world, as records."""
    rendered = folder / "rendered"
    for script, *args in (
        ["render_synthetic.py", f"--out={rendered}", "--images=0", "--videos=8"],
        ["prepare_data.py", "videos", f"--source={rendered / 'videos'}", f"--out={folder}/records"],
    ):
        command = [sys.executable, str(ROOT / "scripts" / script), *args]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise UserError(f"{script} failed: {done.stderr[-500:]}")


def table(out: Path) -> list[list[str]]:
    """The complete rows of metrics.csv, without times."""
    file = out / "metrics.csv"
    text = file.read_text() if file.exists() else ""
    lines = text[: text.rfind("\n") + 1].splitlines()[1:]
    return [line.split(",")[:COMPARED_COLUMNS] for line in lines]


def rows(out: Path) -> int:
    return len(table(out))


def step_folders(out: Path) -> list[Path]:
    found = [path for path in (out / "checkpoints").glob("*") if path.name.isdigit()]
    return sorted(found, key=lambda path: int(path.name))


def group_members(group: int) -> list[int]:
    """The processes of a process group."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def check(turn: Round, undisturbed: Path) -> None:
    """Raise UserError where a row differs from the undisturbed run, or something is left behind."""
    expected = table(undisturbed)
    for i, row in enumerate(table(turn.out)):
        if row != expected[i]:
            raise UserError(f"row {i} is {row}, but in the undisturbed run {expected[i]}")
    until = time.monotonic() + SECONDS_FOR_WORKERS
    while (left := group_members(turn.process.pid)) and time.monotonic() < until:
        time.sleep(0.1)
    if left:
        raise UserError(f"processes {left} still run {SECONDS_FOR_WORKERS} seconds after the end")
    in_order = turn.process.returncode in (0, 2, 130)
    count = len(step_folders(turn.out))
    if count > KEEP + 1 + (not in_order):  # a kill may come between a save and the removal of an older step
        raise UserError(f"{count} checkpoints are left")
    if in_order:
        names = ("training.lock", "checkpoints/*.orbax-checkpoint-tmp*")
        if left := [path for name in names for path in turn.out.glob(name)]:
            raise UserError(f"{left[0]} is left")


def soak(out: Path, minutes: float, seed: int) -> list[tuple[str, int, str]]:
    """Rounds until the time is over: for each the fault, the rows after it, and the status."""
    chance = random.Random(seed)
    shutil.rmtree(out, ignore_errors=True)
    make_records(out)
    undisturbed = Round(out / "undisturbed", chance)
    undisturbed.run(FAULTS["nothing"])
    done: list[tuple[str, int, str]] = []
    number, end = 0, time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        folder = out / f"run-{number}"
        name = chance.choice(list(FAULTS))
        turn = Round(folder, chance)
        try:
            turn.run(FAULTS[name])
            check(turn, out / "undisturbed")
        except UserError as error:
            raise UserError(f"round {len(done)}, {name}, in {folder}: {error}") from error
        status = turn.process.returncode
        done.append((name, rows(folder), str(status)))
        print(f"{len(done):4}  {name:22} status {status:4}  {rows(folder):3} steps", flush=True)
        only_one_damaged = name == "flipped byte" and status == 2
        if rows(folder) == STEPS or only_one_damaged:
            number += 1
    remove_orphans()
    if left := list(SHARED_MEMORY.glob(f"*fyp_jax-*-{undisturbed.process.pid}-*")):
        raise UserError(f"{left[0]} is left")
    return done


def main() -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    add = parser.add_argument
    add("--minutes", type=float, default=20, metavar="N", help="how long (%(default)s)")
    add("--seed", type=int, default=0, metavar="S", help="which faults, and when (%(default)s)")
    add("--out", type=Path, default=Path("runs/soak"), metavar="DIR", help="removed first (%(default)s)")
    args = parser.parse_args()
    done = soak(args.out.absolute(), args.minutes, args.seed)
    statuses = collections.Counter((name, status) for name, _, status in done)
    print(f"\n{len(done)} rounds, seed {args.seed}: all rows equal those of the undisturbed run\n")
    print("| fault | status | times |\n|---|---|---|")
    for (name, status), times in sorted(statuses.items()):
        print(f"| {name} | {status} | {times} |")


if __name__ == "__main__":
    run_console(main)
