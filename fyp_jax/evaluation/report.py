"""The report of an evaluation: two Markdown tables, two figures, and clips that play side by side."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure

from fyp_jax.errors import wrap_write_errors
from fyp_jax.evaluation.scene_set import SceneScores
from fyp_jax.evaluation.statistics import paired_difference
from fyp_jax.media.images import side_by_side
from fyp_jax.media.writing import write_gif

PANELS = (
    ("pose_accuracy", "iou"),
    ("character", "place", "style"),
    ("sharpness",),
    ("edge_width",),
    ("part_deviation", "background_change"),
    ("pan_unevenness", "pan_error"),
)
"""Scores that share a scale, and so a panel of the figure."""
DIGITS = {"edge_width": 2, "part_deviation": 1, "background_change": 1, "pan_unevenness": 2, "pan_error": 2}
"""Decimals of a score in the table, where they are not 3."""


def table_rows(results: Mapping[str, SceneScores]) -> Iterator[str]:
    """The lines of a Markdown table, a row for each model or ablation. A cell without score is empty."""
    yield from _header("")
    for name, scores in results.items():
        cells = [_cell(value, field) for field, value in scores._asdict().items()]
        yield f"| {name} | " + " | ".join(cells) + " |"


def difference_rows(results: Mapping[str, SceneScores], baselines: Mapping[str, str]) -> Iterator[str]:
    """The lines of a Markdown table of paired differences: each row of `baselines` minus its baseline's row,
    clip by clip. A cell is empty where no clip has both scores."""
    yield from _header("", "minus")
    for name, baseline in baselines.items():
        pairs = zip(SceneScores._fields, results[name], results[baseline], strict=True)
        cells = [
            _cell(a and b and paired_difference(a.clips, b.clips), field, sign="+") for field, a, b in pairs
        ]
        yield f"| {name} | {baseline} | " + " | ".join(cells) + " |"


def _header(*first: str) -> Iterator[str]:
    """The first two lines of a table with a column for each score."""
    names = [*first, *(name.replace("_", " ") for name in SceneScores._fields)]
    yield "|" + "".join(f" {name} |" if name else " |" for name in names)
    yield "|---" * len(names) + "|"


def _cell(value: Any, field: str, sign: str = "") -> str:
    """A mean with its interval, or nothing for None."""
    if value is None:
        return ""
    mean, low, high = (f"{x:{sign}.{DIGITS.get(field, 3)}f}" for x in (value.mean, value.low, value.high))
    return f"{mean} ({low} to {high})"


def plot_scores(results: Mapping[str, SceneScores], file: Path) -> None:
    """Write a PNG of bars with intervals: a panel for each scale, a group for each model or ablation."""
    figure = Figure(figsize=(3 * len(PANELS) + 2, 0.45 * len(results) * 1.6 + 1.5), layout="constrained")
    panels: Any = figure.subplots(1, len(PANELS), sharey=True)
    positions = -np.arange(len(results), dtype=float)
    for axes, names in zip(panels, PANELS, strict=True):
        height = 0.8 / len(names)
        for number, name in enumerate(names):
            y = positions - (number - (len(names) - 1) / 2) * height
            values = [getattr(scores, name) for scores in results.values()]
            there = [i for i, value in enumerate(values) if value is not None]
            means = np.array([values[i].mean for i in there])
            ends = [[values[i].mean - values[i].low, values[i].high - values[i].mean] for i in there]
            errors = np.array(ends).reshape(-1, 2).T
            label, bar = name.replace("_", " "), {"color": f"C{number}", "ecolor": "#444444"}
            axes.barh(y[there], means, height, xerr=errors, label=label, **bar)
            if name == "pose_accuracy":
                chance = [scores.pose_accuracy_shuffled for scores in results.values()]
                marks = [np.nan if value is None else value.mean for value in chance]
                axes.plot(marks, y, "k|", markersize=9, label="another clip's pose")
        axes.set_yticks(positions, list(results))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", alpha=0.3, linewidth=0.5)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=1, frameon=False, fontsize=8)
    with wrap_write_errors(file):
        figure.savefig(file, dpi=80)


def plot_clips(shown: Mapping[str, Sequence[UInt8[np.ndarray, "f h w 3"]]], file: Path, frames: int) -> None:
    """Write a PNG of the first `frames` frames of clips: a row for each model or ablation, with its name."""
    clips = len(next(iter(shown.values())))
    figure = Figure(figsize=(1.0 * frames * clips + 2.6, 1.05 * len(shown)), layout="constrained")
    panels: Any = figure.subplots(len(shown), clips, squeeze=False)
    for line, (name, videos) in zip(panels, shown.items(), strict=True):
        for axes, video in zip(line, videos, strict=True):
            axes.imshow(np.concatenate(list(video[:frames]), axis=1), interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
        line[0].set_ylabel(name.replace(", ", ",\n"), rotation=0, ha="right", va="center", fontsize=9)
    with wrap_write_errors(file):
        figure.savefig(file, dpi=100)


def animate_clips(
    shown: Mapping[str, Sequence[UInt8[np.ndarray, "f h w 3"]]], file: Path, fps: int | float
) -> None:
    """Write a GIF of the first clip of each model or ablation, side by side, each above its name."""
    write_gif(file, side_by_side([clips[0] for clips in shown.values()], list(shown)), fps)
