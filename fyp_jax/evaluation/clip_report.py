"""The report on folders of clips: a Markdown table, CSV with a row for each clip, JSON, and a figure."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fyp_jax.errors import wrap_write_errors
from fyp_jax.evaluation.clip_measures import ClipMeasures
from fyp_jax.evaluation.statistics import ConfidenceInterval, bootstrap_ci

TITLES = {
    "text_alignment": "text alignment",
    "frame_consistency": "frame consistency",
    "pck": "PCK@0.1",
    "oks": "OKS",
    "flicker": "flicker",
}
DIGITS = {"text_alignment": 2, "frame_consistency": 2, "pck": 3, "oks": 3, "flicker": 2}

MAX_LABEL = 32  # characters of a folder's name in the figure

ClipRow = tuple[str, str, ClipMeasures]
"""Name, prompt and measures of a clip."""


def summarise(rows: Sequence[ClipRow]) -> dict[str, tuple[ConfidenceInterval, int]]:
    """The mean of each measure with its 95% interval over clips, and the number of clips that have it."""
    found = {}
    for name in ClipMeasures._fields:
        values = [value for _, _, measures in rows if (value := getattr(measures, name)) is not None]
        if values:
            found[name] = bootstrap_ci(values), len(values)
    return found


def clip_table(results: Mapping[str, Sequence[ClipRow]]) -> Iterator[str]:
    """The lines of a Markdown table with a row for each folder.

    A mean that is over fewer clips than the folder has says so.
    """
    summaries = {folder: summarise(rows) for folder, rows in results.items()}
    names = [name for name in TITLES if any(name in summary for summary in summaries.values())]
    yield " | ".join(["| | clips", *(TITLES[name] for name in names)]) + " |"
    yield "|---" * (len(names) + 2) + "|"
    for folder, summary in summaries.items():
        cells = [_cell(name, summary, len(results[folder])) for name in names]
        yield " | ".join([f"| {folder}", str(len(results[folder])), *cells]) + " |"


def _cell(name: str, summary: Mapping[str, tuple[ConfidenceInterval, int]], clips: int) -> str:
    if name not in summary:
        return ""
    (mean, low, high), count = summary[name]
    digits = DIGITS[name]
    of = f", {count} clips" if count < clips else ""
    return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f}{of})"


def write_report(results: Mapping[str, Sequence[ClipRow]], out: Path) -> str:
    """Write scores.md, scores.json, clips.csv and scores.png into a folder; gives the table.

    Raises UserError where they cannot be written.
    """
    table = "\n".join(clip_table(results)) + "\n"
    summaries = {
        folder: {
            "clips": len(rows),
            **{name: {**ci._asdict(), "clips": n} for name, (ci, n) in summarise(rows).items()},
        }
        for folder, rows in results.items()
    }
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["folder", "clip", "prompt", *ClipMeasures._fields])
    for folder, rows in results.items():
        writer.writerows([folder, name, prompt, *measures] for name, prompt, measures in rows)
    contents = {
        "scores.md": table,
        "scores.json": json.dumps(summaries, indent=1) + "\n",
        "clips.csv": text.getvalue(),
    }
    for name, content in contents.items():
        with wrap_write_errors(out / name) as file:
            file.write_text(content, encoding="utf-8")
    _plot(results, out / "scores.png")
    return table


def _plot(results: Mapping[str, Sequence[ClipRow]], file: Path) -> None:
    """Write a PNG: a panel for each measure, a bar with its interval for each folder, a dot for each clip."""
    summaries = {folder: summarise(rows) for folder, rows in results.items()}
    names = [name for name in TITLES if any(name in summary for summary in summaries.values())]
    labels = [folder if len(folder) <= MAX_LABEL else "..." + folder[-MAX_LABEL:] for folder in results]
    width = 2.6 * max(1, len(names)) + 0.1 * max(map(len, labels)) + 1
    figure = Figure(figsize=(width, 0.6 * len(results) + 1.4), layout="constrained")
    panels: Any = figure.subplots(1, max(1, len(names)), sharey=True, squeeze=False)[0]
    positions = -np.arange(len(results), dtype=float)
    for axes, name in zip(panels, names, strict=False):
        for y, (folder, summary) in zip(positions, summaries.items(), strict=True):
            if name not in summary:
                continue
            (mean, low, high), _ = summary[name]
            axes.barh(y, mean, 0.6, xerr=[[mean - low], [high - mean]], color="C0", ecolor="#444444")
            values = [getattr(row[2], name) for row in results[folder]]
            dots = [value for value in values if value is not None]
            axes.plot(dots, [y] * len(dots), "k.", markersize=3, alpha=0.3)
        axes.set_title(TITLES[name], fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", alpha=0.3, linewidth=0.5)
    panels[0].set_yticks(positions, labels)
    with wrap_write_errors(file):
        figure.savefig(file, dpi=100)
