"""What a training run reports: a progress bar, `metrics.csv`, TensorBoard files, and validation images.

The folder of a run holds these files:

    metrics.csv                 one row every `log_interval` steps; its columns are `COLUMNS`
    tensorboard/                the same numbers as scalars, the validation images, the config
    validation/000500-NAME.png  the validation images

Steps count from 0. A resumed run appends to the same files.
"""

import math
import resource
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
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

from fyp_jax.errors import UserError, wrap_write_errors
from fyp_jax.media.images import Image
from fyp_jax.media.writing import write_png
from fyp_jax.training.config import LogConfig

Metrics = Mapping[str, float | int]

MEANS = {
    "loss": "loss/all",
    "timestep_bin_loss_0": "loss/timesteps_0_249",
    "timestep_bin_loss_1": "loss/timesteps_250_499",
    "timestep_bin_loss_2": "loss/timesteps_500_749",
    "timestep_bin_loss_3": "loss/timesteps_750_999",
    "grad_norm": "norm/gradient",
    "param_norm": "norm/parameters",
    "lr": "optimizer/learning_rate",
    "step_time": "speed/step_seconds",
    "data_wait": "speed/data_wait_seconds",
}
"""Metrics of a step, each with the column of metrics.csv that holds the mean over the steps of a row."""

COLUMNS = (
    "step",
    *MEANS.values(),
    "speed/clips_per_second",
    "optimizer/skipped_steps",
    "memory/device_GiB",
    "memory/host_GiB",
)
"""The columns of metrics.csv. All but the first are also the tags in TensorBoard."""

GIB = 2**30


class TrainingLog:
    """Reports the steps of one training loop, from `first_step` to `last_step` inclusive; a context manager.

    If an earlier run wrote rows of `first_step` or later steps, they are removed from metrics.csv, and
    TensorBoard hides them. Where `active` is false (in all processes but the first), nothing is shown or
    written. Raises UserError where a file cannot be written, for an interval below 1, and for a metrics.csv
    with other columns.
    """

    def __init__(self, folder: Path, first_step: int, last_step: int, config: LogConfig, active: bool):
        if config.log_interval < 1:
            raise UserError(f"log.log_interval={config.log_interval} must be at least 1")
        self._folder = folder.absolute()  # tensorboardX would read "s3:run" as a bucket
        self._csv, self._events_folder = self._folder / "metrics.csv", self._folder / "tensorboard"
        self._first, self._last, self._interval = first_step, last_step, config.log_interval
        self._active = active
        self._steps: list[Metrics] = []  # the metrics of the next row
        self._step = first_step

    def __enter__(self) -> "TrainingLog":
        if not self._active:
            return self
        with ExitStack() as stack:
            _drop_rows(self._csv, self._first)
            with wrap_write_errors(self._events_folder / "events"):
                # SummaryWriter would not do: its thread dies when the disk is full, and then a call waits for
                # ever. The name has the time in whole seconds; the suffix tells apart two runs of one second.
                events = EventsWriter(str(self._events_folder / "events"), f".from_step_{self._first}")
            self._events = events
            stack.callback(self._close_events)
            # At this event TensorBoard hides what an earlier run wrote of this step and later ones.
            self._write_event(session_log=SessionLog(status=SessionLog.START))
            self._bar = stack.enter_context(
                tqdm(initial=self._first, total=self._last + 1, unit="step", dynamic_ncols=True)
            )
            stack.enter_context(logging_redirect_tqdm())
            # However the loop ends, the steps since the last row are written.
            stack.callback(self._write_row)
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
        """Report a step. Every `log_interval` steps, and at the last step, a row of all steps since the last
        row is written.

        `metrics` has the keys of `MEANS`, `skipped` (number of steps so far whose gradient was not finite)
        and `clips` (number of clips in the global batch); other keys are ignored. NaN means that there is no
        value; the means leave it out. `step_time` is the time since the step before, in seconds, and
        `data_wait` is the part of it that was spent waiting for data.
        """
        if not self._active:
            return
        self._steps.append(dict(metrics))
        self._step = step
        self._bar.set_postfix_str(
            f"loss {metrics['loss']:.4g}, step {metrics['step_time']:.3g}s", refresh=False
        )
        self._bar.update()
        if step % self._interval == 0 or step == self._last:
            self._write_row()

    def images(self, step: int, name: str, grid: Image) -> None:
        """Show an image in TensorBoard, and write it as validation/STEP-NAME.png."""
        if not self._active:
            return
        write_png(self._folder / "validation" / f"{step:06d}-{name}.png", grid)
        self._write_event(step, summary=summary.image(f"validation/{name}", grid, dataformats="HWC"))

    def text(self, name: str, value: str) -> None:
        """Show a text in TensorBoard as it is, without Markdown."""
        if not self._active:
            return
        as_code = textwrap.indent(value, "    ", lambda line: True)  # Markdown's code block
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
    """The columns of a metrics.csv. A last row that is incomplete, as after a kill, is left out.

    Raises UserError where the file does not exist, has other columns, or has no rows.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file; the folder of a training run has one")
    rows = [row for row, _ in _complete_rows(file)]
    if not rows:
        raise UserError(f"{file}: has no rows yet")
    return dict(zip(COLUMNS, np.array(rows, np.float64).T, strict=True))


def _row(steps: Sequence[Metrics]) -> dict[str, float]:
    """The values of all columns but `step`, as Python floats, which `repr` writes exactly."""

    def mean(name: str) -> float:
        values = [step[name] for step in steps if not math.isnan(step[name])]
        return sum(values) / len(values) if values else math.nan

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
    """Peak memory in bytes of the fullest device of this process; NaN where devices report none (CPU)."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [float(stat["peak_bytes_in_use"]) for stat in stats if "peak_bytes_in_use" in stat]
    return max(peaks, default=math.nan)


def _host_peak() -> float:
    """Peak memory of this process in bytes, without its data workers."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)


def _complete_rows(file: Path) -> list[tuple[list[float], int]]:
    """Of each row the numbers and the offset of its end in bytes, up to the first row that is incomplete.

    Raises UserError for other columns.
    """
    try:
        header, *lines = file.read_bytes().splitlines(keepends=True) or [b""]
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error
    expected = (",".join(COLUMNS) + "\n").encode()
    if not expected.startswith(header):
        found = header.decode(errors="replace").strip()
        raise UserError(
            f"{file}: begins with {found[:60]!r}, not with the columns of this version's training log"
            f" ({expected.decode()[:24]}...); move it away, or choose another output_dir"
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
    """Keep the header and the complete rows of steps before `first_step`; create the file where there is
    none."""
    header = (",".join(COLUMNS) + "\n").encode()
    rows = _complete_rows(file) if file.exists() else []
    ends = [end for (step, *_), end in rows if step < first_step]
    with wrap_write_errors(file), file.open("r+b" if ends else "wb") as out:
        if ends:
            out.truncate(ends[-1])
        else:
            out.write(header)
