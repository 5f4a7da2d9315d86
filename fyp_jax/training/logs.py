"""What a training run tells: a progress bar, `metrics.csv`, TensorBoard files, and validation pictures.

In the folder of a run stand, after a while:

    metrics.csv                 one row every few steps, the columns are `COLUMNS`
    tensorboard/                the same as scalars, the pictures, the config
    validation/000500-NAME.png  the pictures

Steps count from 0. A resumed run goes on in the same files.
"""

import math
import resource
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
from jaxtyping import Float64
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from fyp_jax.errors import UserError
from fyp_jax.media.images import Image
from fyp_jax.media.writing import wrap_write_errors, write_png
from fyp_jax.options import config_field

Metrics = Mapping[str, float | int]

MEANS = {
    "loss": "loss/all",
    "loss_quarter_0": "loss/timesteps_0_249",
    "loss_quarter_1": "loss/timesteps_250_499",
    "loss_quarter_2": "loss/timesteps_500_749",
    "loss_quarter_3": "loss/timesteps_750_999",
    "grad_norm": "norm/gradient",
    "param_norm": "norm/parameters",
    "lr": "optimizer/learning_rate",
    "step_time": "speed/step_seconds",
    "data_wait": "speed/data_wait_seconds",
}
"""A metric of a step, and the column that has its mean over the steps of a row."""

COLUMNS = (
    "step",
    *MEANS.values(),
    "speed/clips_per_second",
    "optimizer/skipped_steps",
    "memory/device_GiB",
    "memory/host_GiB",
)
"""Of metrics.csv; all but the first are TensorBoard's tags too."""

GIB = 2**30


@dataclass
class LogConfig:
    """How often a training run tells how it does."""

    every: int = config_field(10, "steps from one row of metrics.csv to the next")


class TrainingLog:
    """Tells of the steps `first_step` to `last_step`, both included, of one training loop; a context manager.

    What an earlier run wrote of `first_step` and later ones is dropped from metrics.csv, and hidden by
    TensorBoard. Where `active` is false (all processes but the first) nothing is shown or written.
    Raises UserError where the disk says no, for an `every` below 1, and for a metrics.csv of other columns.
    """

    def __init__(self, folder: Path, first_step: int, last_step: int, config: LogConfig, active: bool):
        if config.every < 1:
            raise UserError(f"log.every={config.every} must be at least 1")
        self._folder = folder.absolute()  # tensorboardX would read "s3:run" as a bucket
        self._csv, self._events_folder = self._folder / "metrics.csv", self._folder / "tensorboard"
        self._first, self._last, self._every = first_step, last_step, config.every
        self._active = active
        self._steps: list[Metrics] = []  # of the row to come
        self._step = first_step

    def __enter__(self) -> "TrainingLog":
        if not self._active:
            return self
        with ExitStack() as stack:
            _drop_rows(self._csv, self._first)
            with wrap_write_errors(self._events_folder / "events"):
                # Not SummaryWriter: its thread dies when the disk is full, and a later call waits for ever.
                # The suffix: the name has whole seconds only, and two runs of one second must not share it.
                events = EventsWriter(str(self._events_folder / "events"), f".from_step_{self._first}")
            self._events = events
            stack.callback(self._close_events)
            # by which TensorBoard hides what an earlier run wrote of this step and later ones
            self._write_event(session_log=SessionLog(status=SessionLog.START))
            self._bar = stack.enter_context(
                tqdm(initial=self._first, total=self._last + 1, unit="step", dynamic_ncols=True)
            )
            stack.enter_context(logging_redirect_tqdm())
            stack.callback(self._write_row)  # of the steps since the last row, whatever ended the loop
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._active:
            self._stack.__exit__(kind, error, traceback)

    def step(self, step: int, metrics: Metrics) -> None:
        """Move the bar; every few steps, and at the last, write the row of all steps since the row before.

        `metrics` has the keys of `MEANS`, `skipped` (steps left out so far, as their gradients were not
        finite) and `clips` (of the global batch); other keys are left alone. NaN is "there was none" and
        stays out of the means. `step_time` is the time from one step to the next, `data_wait` a part of it,
        both in seconds.
        """
        if not self._active:
            return
        self._steps.append(dict(metrics))
        self._step = step
        self._bar.set_postfix_str(
            f"loss {metrics['loss']:.4g}, step {metrics['step_time']:.3g}s", refresh=False
        )
        self._bar.update()
        if step % self._every == 0 or step == self._last:
            self._write_row()

    def pictures(self, step: int, name: str, sheet: Image) -> None:
        """Show a picture in TensorBoard, and write it as validation/STEP-NAME.png."""
        if not self._active:
            return
        write_png(self._folder / "validation" / f"{step:06d}-{name}.png", sheet)
        self._write_event(step, summary=summary.image(f"validation/{name}", sheet, dataformats="HWC"))

    def text(self, name: str, value: str) -> None:
        """Show a text in TensorBoard, as it stands."""
        if not self._active:
            return
        as_code = textwrap.indent(value, "    ", lambda line: True)  # TensorBoard reads Markdown
        self._write_event(summary=summary.text(name, as_code))

    def _write_row(self) -> None:
        if not self._steps:
            return
        steps, self._steps = self._steps, []
        row = _row(steps)
        with wrap_write_errors(self._csv) as file, file.open("a", encoding="utf-8") as out:
            out.write(",".join([str(self._step), *(repr(row[tag]) for tag in COLUMNS[1:])]) + "\n")
        scalars = summary.Summary()
        for tag, value in row.items():
            if not math.isnan(value):
                scalars.value.add(tag=tag, simple_value=value)
        self._write_event(self._step, summary=scalars)

    def _write_event(self, step: int | None = None, **content: Any) -> None:
        step = self._first if step is None else step
        with wrap_write_errors(self._events_folder):
            self._events.write_event(Event(wall_time=time.time(), step=step, **content))
            self._events.flush()

    def _close_events(self) -> None:
        with wrap_write_errors(self._events_folder):
            self._events.close()


def read_metrics(file: Path) -> dict[str, Float64[np.ndarray, "rows"]]:
    """The columns of a metrics.csv, a row cut off by a kill left out.

    Raises UserError: no such file, other columns, no rows.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file; it stands in the folder of a training run")
    rows = [row for row, _ in _whole_rows(file)]
    if not rows:
        raise UserError(f"{file}: has no rows yet")
    return dict(zip(COLUMNS, np.array(rows, np.float64).T, strict=True))


def _row(steps: Sequence[Metrics]) -> dict[str, float]:
    """All columns but the step; Python's floats, which `repr` writes as numbers, exactly."""

    def mean(name: str) -> float:
        known = [step[name] for step in steps if not math.isnan(step[name])]
        return sum(known) / len(known) if known else math.nan

    seconds = sum(step["step_time"] for step in steps)
    row = {
        **{tag: mean(name) for name, tag in MEANS.items()},
        "speed/clips_per_second": sum(step["clips"] for step in steps) / seconds if seconds else math.nan,
        "optimizer/skipped_steps": steps[-1]["skipped"],
        "memory/device_GiB": _device_peak() / GIB,
        "memory/host_GiB": _host_peak() / GIB,
    }
    return {tag: float(value) for tag, value in row.items()}


def _device_peak() -> float:
    """Bytes that were in use at most on one of this process's devices; NaN where they do not say (CPU)."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [float(stat["peak_bytes_in_use"]) for stat in stats if "peak_bytes_in_use" in stat]
    return max(peaks, default=math.nan)


def _host_peak() -> float:
    """Bytes of memory that this process held at most; its data workers are not in it."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)


def _whole_rows(file: Path) -> list[tuple[list[float], int]]:
    """The numbers of each row and the byte behind it, up to the first row that is not whole.

    Raises UserError for other columns.
    """
    try:
        header, *lines = file.read_bytes().splitlines(keepends=True) or [b""]
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error
    ours = (",".join(COLUMNS) + "\n").encode()
    if not ours.startswith(header):
        found = header.decode(errors="replace").strip()
        raise UserError(
            f"{file}: begins with {found[:60]!r}, not with the columns of this version's training log"
            f" ({ours.decode()[:24]}...); move it away, or take another folder"
        )
    rows, end = [], len(header)
    for line in lines:
        try:
            row = [float(number) for number in line.split(b",")]
        except ValueError:
            break
        if len(row) != len(COLUMNS) or not line.endswith(b"\n"):
            break
        end += len(line)
        rows.append((row, end))
    return rows


def _drop_rows(file: Path, first_step: int) -> None:
    """Leave the header and the whole rows of the steps before `first_step`, or make a file of the header."""
    header = (",".join(COLUMNS) + "\n").encode()
    rows = _whole_rows(file) if file.exists() else []
    ends = [end for (step, *_), end in rows if step < first_step]
    with wrap_write_errors(file), file.open("r+b" if ends else "wb") as out:
        if ends:
            out.truncate(ends[-1])
        else:
            out.write(header)
