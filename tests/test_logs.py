"""Metrics and images of a training run: each step once, the right means, and files that other tools read."""

import csv
import io
import logging
import math
import resource
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from PIL import Image
from tensorboardX.crc32c import crc32c
from tensorboardX.proto.event_pb2 import Event, SessionLog

from fyp_jax.errors import UserError
from fyp_jax.training.config import LogConfig
from fyp_jax.training.logs import COLUMNS, TrainingLog, read_metrics

NAN = math.nan
STATUS = Path("/proc/self/status")


def metrics(step: int, **others: float) -> dict[str, float]:
    """Metrics of a step, with numbers that tell which step it was."""
    bin_losses = {f"timestep_bin_loss_{i}": step + i / 10 for i in range(4)}
    rest = {"grad_norm": 2.0 * step, "param_norm": 100.0 + step, "lr": 1e-4 * step, "skipped": step // 3}
    times = {"step_time": 0.5, "data_wait": 0.25, "clips": 8}
    return {"loss": float(step), **bin_losses, **rest, **times, **others}


def train(folder: Path, first: int, last: int, log_interval: int = 1, stop: int | None = None) -> None:
    """Steps first to last, or to `stop` where the run is killed."""
    with TrainingLog(folder, first, last, LogConfig(log_interval), active=True) as log:
        for step in range(first, last + 1):
            log.step(step, metrics(step))
            if step == stop:
                return


def rows(folder: Path) -> list[dict[str, float]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def column(folder: Path, name: str) -> list[float]:
    return [row[name] for row in rows(folder)]


def events(folder: Path) -> list[Any]:
    """The events in each of a run's TensorBoard files, in the order of their records, checksums compared."""

    def masked(data: bytes) -> int:
        crc = crc32c(data)
        return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF

    found = []
    for file in sorted((folder / "tensorboard").iterdir()):
        data = io.BytesIO(file.read_bytes())
        while head := data.read(8):
            (length,) = struct.unpack("<Q", head)
            head_crc, body, body_crc = data.read(4), data.read(length), data.read(4)
            assert struct.unpack("<II", head_crc + body_crc) == (masked(head), masked(body))
            found.append(Event.FromString(body))
    return found


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of each tag."""
    found: dict[str, list[tuple[int, float]]] = {}
    for event in events(folder):
        for value in event.summary.value:
            if value.HasField("simple_value"):
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writing more bytes to one file fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_row_has_the_means_of_its_steps(tmp_path):
    times = {0: 4.0, 1: 0.5, 2: 1.0, 3: 1.5, 4: 1.0, 5: 2.0, 6: 2.0}
    with TrainingLog(tmp_path, 0, 6, LogConfig(log_interval=4), active=True) as log:
        for step, seconds in times.items():
            log.step(step, metrics(step, step_time=seconds, clips=6))
    assert column(tmp_path, "step") == [0, 4, 6]  # rows of step 0, of steps 1 to 4, and of 5 and 6
    assert column(tmp_path, "loss/all") == [0, 2.5, 5.5]
    for i, name in enumerate(["0_249", "250_499", "500_749", "750_999"]):
        np.testing.assert_allclose(
            column(tmp_path, f"loss/timesteps_{name}"), np.array([0, 2.5, 5.5]) + i / 10
        )
    assert column(tmp_path, "norm/gradient") == [0, 5, 11]
    assert column(tmp_path, "norm/parameters") == [100, 102.5, 105.5]
    np.testing.assert_allclose(column(tmp_path, "optimizer/learning_rate"), [0, 2.5e-4, 5.5e-4])
    assert column(tmp_path, "optimizer/skipped_steps") == [0, 1, 2]  # the last count, no mean
    assert column(tmp_path, "speed/step_seconds") == [4, 1, 2]
    assert column(tmp_path, "speed/data_wait_seconds") == [0.25] * 3
    assert column(tmp_path, "speed/clips_per_second") == [1.5, 6, 3]
    assert tuple(rows(tmp_path)[0]) == COLUMNS


def test_numbers_of_any_float_type_are_written_exactly(tmp_path):
    values = [0.1, 1e-300, np.float64(1) / 3, math.inf]
    with TrainingLog(tmp_path, 0, 3, LogConfig(log_interval=1), active=True) as log:
        for step, value in enumerate(values):
            log.step(step, metrics(step, loss=value))
    assert column(tmp_path, "loss/all") == values
    np.testing.assert_array_equal(read_metrics(tmp_path / "metrics.csv")["loss/all"], values)


def test_means_leave_out_nan(tmp_path):
    with TrainingLog(tmp_path, 1, 4, LogConfig(log_interval=4), active=True) as log:
        for step, (bin_loss, loss) in enumerate([(NAN, 1.0), (3.0, NAN), (NAN, 2.0), (5.0, 6.0)], start=1):
            log.step(step, metrics(step, loss=loss, timestep_bin_loss_1=bin_loss, timestep_bin_loss_2=NAN))
    (row,) = rows(tmp_path)
    assert row["loss/all"] == 3
    assert row["loss/timesteps_250_499"] == 4
    assert math.isnan(row["loss/timesteps_500_749"])
    found = scalars(tmp_path)
    assert found["loss/timesteps_250_499"] == [(4, 4)]
    assert "loss/timesteps_500_749" not in found


def test_metrics_of_a_resumed_run_have_each_step_once(tmp_path):
    train(tmp_path, 0, 99, stop=7)
    whole = (tmp_path / "metrics.csv").read_text()
    train(tmp_path, 5, 99, stop=11)  # the last checkpoint was that of step 4
    assert column(tmp_path, "step") == [*range(12)]
    assert column(tmp_path, "loss/all") == [*range(12)]
    before = "".join(whole.splitlines(keepends=True)[:6])
    assert (tmp_path / "metrics.csv").read_text().startswith(before)
    train(tmp_path, 0, 1)  # there was no checkpoint at all
    assert column(tmp_path, "step") == [0, 1]


def test_tensorboard_of_a_resumed_run_hides_repeated_steps(tmp_path):
    train(tmp_path, 0, 99, stop=7)
    train(tmp_path, 5, 99, stop=11)
    runs = sorted((tmp_path / "tensorboard").iterdir())
    assert len(runs) == 2  # two files, though the runs began in the same second
    starts = [event.step for event in events(tmp_path) if event.session_log.status == SessionLog.START]
    assert starts == [0, 5]
    versions = [event.file_version for event in events(tmp_path) if event.file_version]
    assert versions == ["brain.Event:2"] * 2  # TensorBoard hides by START from this version on


def test_metrics_truncated_by_a_kill_are_continued(tmp_path):
    train(tmp_path / "whole", 0, 3)
    whole = (tmp_path / "whole" / "metrics.csv").read_bytes()
    header, *lines = whole.splitlines(keepends=True)
    ends = np.cumsum([len(header), *map(len, lines)])
    for size in [0, 1, len(header) - 1, *ends, ends[-2] + 1, ends[-2] + 40, ends[-1] - 10, ends[-1] - 1]:
        folder = tmp_path / str(size)
        folder.mkdir(exist_ok=True)
        (folder / "metrics.csv").write_bytes(whole[:size])
        kept = max(int((ends <= size).sum()) - 1, 0)
        if kept:
            assert len(read_metrics(folder / "metrics.csv")["step"]) == kept
        train(folder, 3, 4)
        assert column(folder, "step") == [*range(min(kept, 3)), 3, 4], f"cut after {size} bytes"


def test_loop_that_ends_early_writes_the_steps_since_the_last_row(tmp_path):
    def fail() -> None:
        with TrainingLog(tmp_path, 0, 99, LogConfig(log_interval=10), active=True) as log:
            for step in range(13):
                log.step(step, metrics(step))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert column(tmp_path, "step") == [0, 10, 12]
    assert column(tmp_path, "loss/all") == [0, 5.5, 11.5]
    assert scalars(tmp_path)["loss/all"] == [(0, 0), (10, 5.5), (12, 11.5)]


@pytest.mark.parametrize(
    "content", [b"epoch,loss\n1,0.5\n", b"step,loss/all\n0,1.0\n", b"\x89PNG\r\n\x1a\n\x00\xff", b"\n"]
)
def test_metrics_with_other_columns_are_refused_and_left_alone(tmp_path, content):
    file = tmp_path / "metrics.csv"
    file.write_bytes(content)
    for do in (lambda: train(tmp_path, 0, 1), lambda: read_metrics(file)):
        with pytest.raises(UserError, match="begins with .* not with the columns") as caught:
            do()
        assert str(caught.value).startswith(f"{file}: ")
        assert "\n" not in str(caught.value)
    assert file.read_bytes() == content
    assert list(tmp_path.iterdir()) == [file]


def test_read_metrics_without_file_or_rows_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"metrics.csv: no such file"):
        read_metrics(tmp_path / "metrics.csv")
    with TrainingLog(tmp_path, 0, 9, LogConfig(), active=True):
        pass
    with pytest.raises(UserError, match=r"metrics.csv: has no rows"):
        read_metrics(tmp_path / "metrics.csv")


def test_tensorboard_has_the_numbers_of_the_csv(tmp_path):
    train(tmp_path, 0, 25, log_interval=10)
    found = scalars(tmp_path)
    assert set(found) == set(COLUMNS) - {"step", "memory/device_GiB"}
    for tag, points in found.items():
        assert [step for step, _ in points] == [0, 10, 20, 25]
        np.testing.assert_allclose([value for _, value in points], column(tmp_path, tag), rtol=1e-6)


def test_rows_are_written_while_the_run_continues(tmp_path):
    with TrainingLog(tmp_path, 0, 7, LogConfig(log_interval=5), active=True) as log:
        for step, steps in enumerate([[0], [0], [0], [0], [0], [0, 5], [0, 5], [0, 5, 7]]):
            log.step(step, metrics(step))
            assert column(tmp_path, "step") == steps
            assert [at for at, _ in scalars(tmp_path)["loss/all"]] == steps


def test_images_and_texts_are_written_unchanged(tmp_path):
    grid = np.random.default_rng(0).integers(0, 255, (20, 31, 3)).astype(np.uint8)
    text = "lr: 3e-5\n\n# no headline\nstage:\n  name: motion\n"
    with TrainingLog(tmp_path, 40, 99, LogConfig(), active=True) as log:
        log.text("config", text)
        log.images(41, "dance", grid)
    with Image.open(tmp_path / "validation" / "000041-dance.png") as image:
        np.testing.assert_array_equal(np.asarray(image), grid)
    values = {value.tag: (event.step, value) for event in events(tmp_path) for value in event.summary.value}
    step, value = values["validation/dance"]
    assert (step, value.image.width, value.image.height) == (41, 31, 20)
    with Image.open(io.BytesIO(value.image.encoded_image_string)) as image:
        np.testing.assert_array_equal(np.asarray(image), grid)
    step, value = values["config/text_summary"]
    assert step == 40
    assert value.metadata.plugin_data.plugin_name == "text"
    lines = value.tensor.string_val[0].decode().splitlines()
    assert [line[4:] for line in lines] == text.splitlines()
    assert all(line.startswith("    ") for line in lines)  # Markdown's code block


def test_inactive_log_writes_and_shows_nothing(tmp_path, capsys):
    handlers = list(logging.root.handlers)
    with TrainingLog(tmp_path / "run", 0, 3, LogConfig(log_interval=1), active=False) as log:
        assert logging.root.handlers == handlers
        log.text("config", "a: 1")
        for step in range(4):
            log.step(step, metrics(step))
        log.images(3, "dance", np.zeros((8, 8, 3), np.uint8))
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr() == ("", "")


def test_bar_shows_the_step_and_messages_have_lines_of_their_own(tmp_path, capsys, monkeypatch):
    handler = logging.StreamHandler(sys.stderr)
    monkeypatch.setattr(logging.root, "handlers", [handler])
    with TrainingLog(tmp_path, 4, 9, LogConfig(), active=True) as log:
        for step in range(4, 10):
            log.step(step, metrics(step, loss=0.12345, step_time=0.678))
            if step == 6:
                logging.getLogger("loader").warning("clip.mp4 is broken")
    assert logging.root.handlers == [handler]
    shown = capsys.readouterr().err.replace("\r", "\n").splitlines()
    states = [text.strip() for text in shown if text.strip()]
    assert "4/10" in states[0]
    assert "10/10" in states[-1]
    assert "loss 0.1235, step 0.678s" in states[-1]
    assert "clip.mp4 is broken" in states  # on a line of its own


def test_device_memory_is_the_peak_of_the_fullest_device(tmp_path, monkeypatch):
    train(tmp_path / "cpu", 0, 0)
    assert math.isnan(column(tmp_path / "cpu", "memory/device_GiB")[0])  # a CPU does not report it

    class Device:
        def __init__(self, stats: dict[str, int] | None):
            self.memory_stats = lambda: stats

    stats = [
        None,
        {"bytes_in_use": 9 * 2**30},
        {"peak_bytes_in_use": 2**30},
        {"peak_bytes_in_use": 3 * 2**29},
    ]
    monkeypatch.setattr(jax, "local_devices", lambda: [Device(stat) for stat in stats])
    train(tmp_path / "tpu", 0, 0)
    assert column(tmp_path / "tpu", "memory/device_GiB") == [1.5]
    assert scalars(tmp_path / "tpu")["memory/device_GiB"] == [(0, 1.5)]


@pytest.mark.skipif(not STATUS.exists(), reason="compares with /proc of Linux")
def test_host_memory_is_the_peak_of_this_process(tmp_path):
    train(tmp_path, 0, 0)
    status = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    kibibytes = int(status["VmHWM"].split()[0])
    np.testing.assert_allclose(column(tmp_path, "memory/host_GiB"), kibibytes / 2**20, rtol=0.2)


# tensorboardX leaves its file open where closing it fails
@pytest.mark.filterwarnings("ignore:unclosed file .*tfevents:ResourceWarning")
def test_full_disk_stops_the_run_with_one_line(tmp_path, capsys):  # capsys: the bar goes to no file
    train(tmp_path / "csv", 0, 40)
    size = (tmp_path / "csv" / "metrics.csv").stat().st_size
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8)

    def write_image() -> None:
        with TrainingLog(tmp_path / "png", 0, 9, LogConfig(), active=True) as log:
            log.images(0, "dance", image)

    for do, limit, named in [
        (lambda: train(tmp_path / "csv", 41, 99), size + 10, "csv/metrics.csv"),
        (lambda: train(tmp_path / "events", 0, 999), 2500, "events/tensorboard"),
        (write_image, 2500, "png/validation/000000-dance.png"),
    ]:
        with files_of_at_most(limit), pytest.raises(UserError, match="cannot be written") as caught:
            do()
        assert str(caught.value).startswith(f"{tmp_path / named}: ")
        assert "\n" not in str(caught.value)
    train(tmp_path / "csv", 41, 43)  # there is space again
    assert column(tmp_path / "csv", "step") == [*range(44)]


def test_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/run/metrics.csv: cannot be written"):
        train(tmp_path / "file" / "run", 0, 1)


@pytest.mark.parametrize("active", [True, False])  # all processes stop alike
def test_log_interval_below_one_is_refused(tmp_path, active):
    with pytest.raises(UserError, match=r"log.log_interval=0 must be at least 1"):
        TrainingLog(tmp_path, 0, 1, LogConfig(log_interval=0), active)
    assert not list(tmp_path.iterdir())
