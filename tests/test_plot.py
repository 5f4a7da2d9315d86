"""scripts/plot.py: the curves of training runs as an image."""

import runpy
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from fyp_jax.console import run_cli
from fyp_jax.training.config import LogConfig
from fyp_jax.training.logs import COLUMNS, TrainingLog, read_metrics

SCRIPT = Path(__file__).parents[1] / "scripts" / "plot.py"
BLUE, ORANGE = (31, 119, 180), (255, 127, 14)  # colours of the first and the second run


def run(*args: object) -> int:
    """Run the script as a user does, but in this process."""
    with mock.patch.object(sys, "argv", [str(SCRIPT), *map(str, args)]):
        return run_cli(runpy.run_path(str(SCRIPT))["main"])


def panels(runs: dict[str, Any], rows: int) -> dict[str, Any]:
    """The axes of the figure, by title."""
    return {
        axes.get_title(loc="left"): axes for axes in runpy.run_path(str(SCRIPT))["figure"](runs, rows).axes
    }


def training_run(folder: Path, losses: list[float], bin_loss: float | None = None) -> Path:
    """Write the folder of a run; `bin_loss` is the loss of every timestep bin."""
    with TrainingLog(folder, 0, len(losses) - 1, LogConfig(log_interval=1), active=True) as log:
        for step, loss in enumerate(losses):
            bins = {f"timestep_bin_loss_{i}": loss if bin_loss is None else bin_loss for i in range(4)}
            norms = {"grad_norm": 2 * loss, "param_norm": 1.0, "lr": 1e-4 / (step + 1), "skipped": 0}
            times = {"step_time": 0.5, "data_wait": 0.0, "clips": 8}
            log.step(step, {"loss": loss, **bins, **norms, **times})
    return folder


def colours(file: Path) -> set[tuple[int, ...]]:
    with Image.open(file) as image:
        assert image.format == "PNG"
        return set(map(tuple, np.asarray(image.convert("RGB")).reshape(-1, 3).tolist()))


@pytest.mark.slow
def test_plot_of_one_run_is_saved_in_its_folder(tmp_path, capsys):
    folder = training_run(tmp_path / "motion", [3.0, 2.0, 1.5, 1.2])
    assert run(folder) == 0
    assert capsys.readouterr().out == f"{folder / 'curves.png'}\n"
    found = colours(folder / "curves.png")
    assert BLUE in found
    assert ORANGE not in found


@pytest.mark.slow
def test_plot_of_two_runs_shows_both_with_a_legend(tmp_path):
    folders = [training_run(tmp_path / name, [3.0, 2.0, level]) for name, level in (("a", 1.0), ("b", 1.5))]
    assert run(*folders, "--out", tmp_path / "new" / "both.png", "--smooth", 2) == 0
    assert {BLUE, ORANGE} <= colours(tmp_path / "new" / "both.png")
    assert not (folders[0] / "curves.png").exists()
    runs = {folder.name: read_metrics(folder / "metrics.csv") for folder in folders}
    legend = panels(runs, 1)["loss"].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b"]


def test_figure_panels_show_the_finite_values_of_their_columns(tmp_path):
    losses = [3.0, 2.0, np.inf, 1.0]
    columns = read_metrics(training_run(tmp_path, losses) / "metrics.csv")
    columns["loss/timesteps_250_499"] = np.array([np.nan, 4.0, np.nan, 5.0])
    shown = {
        title: axes.get_lines()[0].get_xydata().tolist()
        for title, axes in panels({"run": columns}, 1).items()
    }
    assert shown == {
        "loss": [[0, 3], [1, 2], [3, 1]],
        "loss, timesteps 0 to 249": [[0, 3], [1, 2], [3, 1]],
        "loss, timesteps 250 to 499": [[1, 4], [3, 5]],
        "loss, timesteps 500 to 749": [[0, 3], [1, 2], [3, 1]],
        "loss, timesteps 750 to 999": [[0, 3], [1, 2], [3, 1]],
        "gradient norm": [[0, 6], [1, 4], [3, 2]],
        "learning rate": [[i, 1e-4 / (i + 1)] for i in range(4)],
        "time of a step, seconds": [[i, 0.5] for i in range(4)],
        "time waiting for data, seconds": [[i, 0] for i in range(4)],
    }


def test_figure_smooths_losses_and_norm_by_a_running_mean(tmp_path):
    columns = read_metrics(training_run(tmp_path, [6.0, 2.0, 4.0, 9.0]) / "metrics.csv")
    shown = panels({"run": columns}, 3)
    raw, smooth = (line.get_ydata().tolist() for line in shown["loss"].get_lines())
    assert raw == [6, 2, 4, 9]
    assert smooth == [6, 4, 4, 5]
    assert [line.get_ydata().tolist() for line in shown["gradient norm"].get_lines()][1] == [12, 8, 8, 10]
    assert len(shown["learning rate"].get_lines()) == 1


def test_figure_scale_is_logarithmic_where_a_loss_spans_more_than_a_decade(tmp_path):
    wide = read_metrics(training_run(tmp_path / "wide", [11.0, 5.0, 1.0], bin_loss=2.0) / "metrics.csv")
    near = read_metrics(training_run(tmp_path / "near", [4.0, 1.5, 1.0], bin_loss=30.0) / "metrics.csv")
    wide["optimizer/learning_rate"] = np.array([1e-6, 1e-5, 1e-4])  # linear warmup
    alone, both = panels({"near": near}, 1), panels({"near": near, "wide": wide}, 1)
    assert {axes.get_yscale() for axes in alone.values()} == {"linear"}
    logarithmic = {title for title, axes in both.items() if axes.get_yscale() == "log"}
    assert logarithmic == {"loss", "gradient norm", *(title for title in both if "timesteps" in title)}


def test_figure_timestep_bins_share_a_scale_that_shows_all_values(tmp_path):
    columns = read_metrics(training_run(tmp_path, [3.0, 1.0]) / "metrics.csv")
    columns["loss/timesteps_750_999"] = np.array([7.0, 8.0])
    shown = panels({"run": columns}, 1)
    assert len({axes.get_ylim() for title, axes in shown.items() if "timesteps" in title}) == 1
    for axes in shown.values():
        low, high = axes.get_ylim()
        for line in axes.get_lines():
            assert low <= line.get_ydata().min() <= line.get_ydata().max() <= high, axes.get_title(loc="left")


@pytest.mark.slow
def test_plot_of_a_run_with_one_row_is_visible(tmp_path):
    folder = training_run(tmp_path / "one", [1.0], bin_loss=float("nan"))
    assert run(folder) == 0
    assert BLUE in colours(folder / "curves.png")


@pytest.mark.parametrize(
    ("content", "args", "says"),
    [
        (None, [], "metrics.csv: no such file"),
        ("", [], "metrics.csv: has no rows"),
        (",".join(COLUMNS) + "\n", [], "metrics.csv: has no rows"),
        ("epoch,loss\n1,2\n", [], "metrics.csv: begins with 'epoch,loss'"),
        (",".join(COLUMNS) + "\n", ["--smooth", 0], "--smooth 0 must be at least 1"),
    ],
)
def test_plot_of_bad_metrics_or_options_exits_with_one_line(tmp_path, capsys, content, args, says):
    if content is not None:
        (tmp_path / "metrics.csv").write_text(content)
    assert run(tmp_path, *args) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert says in err
    assert err.count("\n") == 1
    assert not (tmp_path / "curves.png").exists()


def test_plot_to_an_unwritable_path_exits_with_one_line(tmp_path, capsys):
    folder = training_run(tmp_path / "run", [1.0])
    capsys.readouterr()
    assert run(folder, "--out", folder / "metrics.csv" / "x.png") == 2
    err = capsys.readouterr().err
    assert "x.png: cannot be written" in err
    assert err.count("\n") == 1
