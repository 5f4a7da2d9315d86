"""Plot the curves of training runs over each other, from the metrics.csv of each run.

    python scripts/plot.py runs/motion --out curves.png
    python scripts/plot.py runs/motion runs/motion_lr1e-4 --smooth 20

Without --out the plot is saved as curves.png in the folder of the first run.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from fyp_jax.console import run_console
from fyp_jax.errors import UserError, wrap_write_errors
from fyp_jax.training.logs import read_metrics

Columns = dict[str, Float64[np.ndarray, "rows"]]

TIMESTEP_BINS = [f"loss/timesteps_{first}_{first + 249}" for first in range(0, 1000, 250)]
TITLES = {
    "loss/all": "loss",
    **{name: f"loss, timesteps {name.split('_', 1)[1].replace('_', ' to ')}" for name in TIMESTEP_BINS},
    "norm/gradient": "gradient norm",
    "optimizer/learning_rate": "learning rate",
    "speed/step_seconds": "time of a step, seconds",
    "speed/data_wait_seconds": "time waiting for data, seconds",
}
MOSAIC: Any = [["loss/all"] * 4, TIMESTEP_BINS, list(TITLES)[5:]]


def running_mean(curve: Float64[np.ndarray, "rows"], rows: int) -> Float64[np.ndarray, "rows"]:
    """Replace each value by the mean of the last `rows` values, or of fewer at the start."""
    return np.array([curve[max(0, end - rows) : end].mean() for end in range(1, len(curve) + 1)])


def plot_panel(axes: Axes, runs: dict[str, Columns], name: str, rows: int) -> None:
    """Plot a column: a line for each run and, where it is smoothed, the original faintly behind it."""
    for i, (label, columns) in enumerate(runs.items()):
        known = np.isfinite(columns[name])  # NaN: no clip of these rows fell into the timestep bin
        steps, curve = columns["step"][known], columns[name][known]
        marker = "." if len(steps) < 30 else ""
        if rows > 1:
            axes.plot(steps, curve, color=f"C{i}", alpha=0.25, linewidth=0.8)
        axes.plot(steps, running_mean(curve, rows), color=f"C{i}", marker=marker, linewidth=1.2, label=label)
    axes.set_title(TITLES[name], loc="left", fontsize=10)
    axes.set_xlabel("step")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3, linewidth=0.5)


def scale_y(axes: Axes, runs: dict[str, Columns], names: list[str]) -> None:
    """Let the y axis start at 0, or make it logarithmic where values span more than a factor of 10."""
    values = np.concatenate([columns[name] for columns in runs.values() for name in names])
    values = values[np.isfinite(values)]
    if len(values) and 0 < 10 * values.min() < values.max() and names != ["optimizer/learning_rate"]:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))


def figure(runs: dict[str, Columns], rows: int) -> Figure:
    """Plot the loss at the top, then the loss of each timestep bin on one scale, then optimizer and timings.

    Losses and the gradient norm are smoothed over `rows` rows, the other panels are not.
    """
    fig = Figure(figsize=(14, 10), layout="constrained")
    panels = fig.subplot_mosaic(MOSAIC, height_ratios=[1.5, 1, 1])
    for name, axes in panels.items():
        if name in TIMESTEP_BINS[1:]:
            axes.sharey(panels[TIMESTEP_BINS[0]])
        plot_panel(axes, runs, name, rows if name.startswith(("loss", "norm")) else 1)
    for name, axes in panels.items():  # after all panels are plotted, because the bins share their limits
        scale_y(axes, runs, TIMESTEP_BINS if name in TIMESTEP_BINS else [name])
    panels["loss/all"].legend(frameon=False)
    return fig


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_FOLDER", help="folder with a metrics.csv")
    parser.add_argument("--out", type=Path, metavar="FILE.png", help="default: curves.png in the first run")
    parser.add_argument(
        "--smooth",
        type=int,
        default=1,
        metavar="N",
        help="running mean of losses and norm over N rows (default: 1)",
    )
    args = parser.parse_args()

    if args.smooth < 1:
        raise UserError(f"--smooth {args.smooth} must be at least 1")
    names = [folder.absolute().name for folder in args.runs]
    labels = names if len(set(names)) == len(names) else map(str, args.runs)
    runs = dict(zip(labels, [read_metrics(folder / "metrics.csv") for folder in args.runs], strict=False))
    out = args.out or args.runs[0] / "curves.png"
    with wrap_write_errors(out) as file:
        figure(runs, args.smooth).savefig(file, format="png")
    print(out)


if __name__ == "__main__":
    run_console(main)
