"""The rows of an evaluation: which models make clips of which cases. Clips that have scores are kept."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import UInt8
from tqdm import tqdm

from fyp_jax import __version__
from fyp_jax.data.synthetic_source import VERSION
from fyp_jax.errors import wrap_write_errors
from fyp_jax.evaluation import part_segmenter
from fyp_jax.evaluation.ablations import (
    CORRELATED_NOISE,
    FRAME_BY_FRAME,
    FULL_MODEL,
    OWN_NOISE,
    WITHOUT_CROSS_FRAME,
    WITHOUT_TEMPORAL,
)
from fyp_jax.evaluation.clip_records import ClipRecords
from fyp_jax.evaluation.scene_set import (
    Kind,
    SceneCase,
    SceneScores,
    Score,
    drawings,
    make_scene_cases,
    mean_scores,
    score_clip,
)
from fyp_jax.media.images import Frames

GROUND_TRUTH = "ground truth"
GIVEN_POSE = "given pose"
OPEN_MODELS = (
    *(FULL_MODEL, FRAME_BY_FRAME, WITHOUT_CROSS_FRAME, WITHOUT_TEMPORAL),
    *(OWN_NOISE, CORRELATED_NOISE),
)
"""What is evaluated on open captions, whose looks the frames have to agree on."""
SCORES = "scores.json"
SHOWN = 2
"""Clips of each row in the picture."""


class Model(NamedTuple):
    """Something that makes clips for cases."""

    sample: Callable[[Any, int], UInt8[np.ndarray, "f h w 3"]]
    weights: str
    """A checksum of its weights (`weights_checksum`)."""


class Row(NamedTuple):
    """A row of the table: clips of a kind of cases, by one model."""

    model: str
    """Its name, or GROUND_TRUTH for the drawings."""
    kind: Kind
    frames: int
    note: str = ""
    """What its name ends in."""

    @property
    def name(self) -> str:
        return self.model + self.note


def plan_rows(models: Sequence[str], frames: int, long: Sequence[int]) -> list[Row]:
    """All models with named captions; the full model with held-out pairs, and with clips of the lengths
    `long`; and those of OPEN_MODELS with open captions. The drawings come before each of these groups."""
    rows = [Row(name, Kind.NAMED, frames) for name in (GROUND_TRUTH, *models)]
    both = (GROUND_TRUTH, FULL_MODEL)
    rows += [Row(name, Kind.HELD_OUT_PAIRS, frames, ", held-out pairs") for name in both]
    for name in (GROUND_TRUTH, *OPEN_MODELS):
        if name == GROUND_TRUTH or name in models:
            rows.append(Row(name, Kind.OPEN, frames, ", open captions"))
    return rows + [Row(name, Kind.NAMED, n, f", {n} frames") for n in long for name in both]


def baselines(rows: Sequence[Row]) -> dict[str, str]:
    """For the name of each model's and ablation's row, that of the full model's row for the same cases.

    Both make a clip for each case with the same seed, so they can be compared clip by clip.
    """
    full = {(row.kind, row.frames): row.name for row in rows if row.model == FULL_MODEL}
    return {
        row.name: full[row.kind, row.frames]
        for row in rows
        if row.model not in (GROUND_TRUTH, FULL_MODEL) and (row.kind, row.frames) in full
    }


def weights_checksum(params: Mapping[str, Any]) -> str:
    """A checksum of nested parameters: of their names, shapes and values."""
    total = hashlib.sha256()
    for path, x in sorted(flatten_dict(params, sep="/").items()):
        array = np.asarray(x)
        total.update(f"{path} {array.shape} {array.dtype}".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def score_rows(
    rows: Sequence[Row], models: Mapping[str, Model], num_clips: int, config: Any, folder: Path
) -> tuple[dict[str, SceneScores], dict[Kind, dict[str, list[Frames]]]]:
    """Scores of all rows, and clips to show: for each kind the first SHOWN clips of each row, and the poses.

    Each clip is sampled and scored once: FOLDER keeps what there is of clips from equal weights and config,
    whatever their number. Of longer clips none is shown. After each row, FOLDER/scores.json is written.
    """
    records = ClipRecords(folder)
    results: dict[str, SceneScores] = {}
    shown: dict[Kind, dict[str, list[Frames]]] = {}
    for row, cases in _with_cases(rows, num_clips):
        model = models.get(row.model)
        key = _clip_key(row, model.weights if model else "", config)
        num_shown = SHOWN if row.frames == rows[0].frames else 0
        scores, clips = [], []
        for i in tqdm(range(num_clips), row.name, unit=" clips"):
            is_shown = i < num_shown
            found = records.scores(key, i)
            frames = records.frames(key, i, row.frames) if is_shown else None
            if found is None or (is_shown and frames is None):
                frames = model.sample(cases[i], i) if model else drawings([cases[i]])[0]
                found = score_clip(frames, cases[i], cases[i + 1])
                records.add(key, i, found, frames if is_shown else None)
            scores.append(found)
            if is_shown:
                clips.append(frames)
        if clips:
            poses = {GIVEN_POSE: [case.pose_images for case in cases[: len(clips)]]}
            shown.setdefault(row.kind, poses)[row.model] = clips
        results[row.name] = mean_scores(scores)
        with wrap_write_errors(folder / SCORES) as path:
            path.write_text(json.dumps(scores_json(results), indent=1) + "\n")
    return results, shown


def scores_json(results: Mapping[str, SceneScores]) -> dict[str, Any]:
    """Scores as values that JSON holds, with those of each clip."""
    return {
        name: {field: value and value._asdict() for field, value in scores._asdict().items()}
        for name, scores in results.items()
    }


def scores_from_json(values: Mapping[str, Any]) -> dict[str, SceneScores]:
    """The scores of `scores_json`. Raises TypeError, AttributeError for other values."""

    def score(value: Mapping[str, Any]) -> Score:
        found = Score(**value)
        return found._replace(clips=tuple(found.clips))

    return {
        name: SceneScores(**{field: value and score(value) for field, value in row.items()})
        for name, row in values.items()
    }


def _with_cases(rows: Sequence[Row], num_clips: int) -> Iterator[tuple[Row, list[SceneCase]]]:
    """Each row with its cases, which are made once where rows that follow each other share them; and one
    more, which is the other pose for the last."""
    key, cases = None, []
    for row in rows:
        if key != (row.kind, row.frames):
            key, cases = (row.kind, row.frames), make_scene_cases(num_clips + 1, row.frames, row.kind)
        yield row, cases


def _clip_key(row: Row, weights: str, config: Any) -> str:
    """A checksum of all that the scores of a row's clips depend on."""
    options = {} if row.model == GROUND_TRUTH else dataclasses.asdict(config) | {"output_dir": None}
    segmenter = hashlib.sha256(part_segmenter.WEIGHTS.read_bytes()).hexdigest()
    parts = [row.name, row.kind.value, row.frames, weights, options, segmenter, VERSION, __version__]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
