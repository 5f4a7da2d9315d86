"""The report of an evaluation: a Markdown table and two figures."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from matplotlib.figure import Figure

from fyp_jax.errors import wrap_write_errors
from fyp_jax.evaluation.eval_set import Scores

PANELS = (
    ("pose_accuracy", "iou"),
    ("character", "background", "style"),
    ("flicker", "drift"),
)
"""Scores that share a scale, and so a panel of the figure."""


def table_rows(results: Mapping[str, Scores]) -> Iterator[str]:
    """The lines of a Markdown table with a row for each model or ablation."""
    names = [name.replace("_", " ") for name in Scores._fields]
    yield "| | " + " | ".join(names) + " |"
    yield "|---" * (len(names) + 1) + "|"
    for name, scores in results.items():
        digits = [1 if field in ("flicker", "drift") else 3 for field in Scores._fields]
        cells = [
            f"{value.mean:.{d}f} ({value.low:.{d}f} to {value.high:.{d}f})"
            for value, d in zip(scores, digits, strict=True)
        ]
        yield f"| {name} | " + " | ".join(cells) + " |"


def plot_scores(results: Mapping[str, Scores], file: Path) -> None:
    """Write a PNG of bars with intervals: a panel for each scale, a group for each model or ablation."""
    figure = Figure(figsize=(11, 0.45 * len(results) * 1.6 + 1.5), layout="constrained")
    panels: Any = figure.subplots(1, len(PANELS), sharey=True)
    positions = -np.arange(len(results), dtype=float)
    for axes, names in zip(panels, PANELS, strict=True):
        height = 0.8 / len(names)
        for number, name in enumerate(names):
            values = [getattr(scores, name) for scores in results.values()]
            means = np.array([value.mean for value in values])
            errors = np.array([[v.mean - v.low for v in values], [v.high - v.mean for v in values]])
            y = positions - (number - (len(names) - 1) / 2) * height
            axes.barh(y, means, height, xerr=errors, label=name.replace("_", " "), ecolor="#444444")
            if name in ("pose_accuracy", "iou"):
                chance = [getattr(scores, f"{name}_shuffled").mean for scores in results.values()]
                label = "another clip's pose" if number == 0 else None
                axes.plot(chance, y, "k|", markersize=9, label=label)
        axes.set_yticks(positions, list(results))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", alpha=0.3, linewidth=0.5)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=3, frameon=False, fontsize=8)
    with wrap_write_errors(file):
        figure.savefig(file, dpi=100)


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
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    with wrap_write_errors(file):
        figure.savefig(file, dpi=100)
