"""What a plan of a run is made from: the JSON of a compile check, and that of a data benchmark.

`scripts/compile_tpu.py --json` writes the first, `scripts/benchmark.py data_rates --json` the second.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fyp_jax.errors import UserError, reason
from fyp_jax.tpu.topologies import Chip

DATA_BENCHMARK = "data_rates"
SAME_TIME = (
    *("seed", "num_train_steps", "noise_correlation", "loss.", "data.batch_size"),
    *("optimizer.lr", "optimizer.warmup_steps", "optimizer.beta1", "optimizer.beta2", "optimizer.eps"),
    *("optimizer.weight_decay", "jax", "jaxlib", "flax", "optax", "libtpu", "fyp_jax", "devices", "cpu"),
)
"""Entries of a step's fingerprint, by their first letters, that do not change what it computes, moves or
sends; the number of clips is compared by itself."""
DATA_FIELDS = ("num_frames", "stride", "height", "width", "random_crop", "cached_latents")
"""Fields of `data` that a data benchmark was run with."""
MEASURED = ("frames_per_item", "bytes_per_item", "load_seconds", "load_bytes", "prepare_seconds")
"""Figures of a data benchmark, all above 0."""


class StepFigures(NamedTuple):
    """A training step as a compile check saw it."""

    file: str
    topology: str
    chip: Chip
    """What one device has."""
    devices: int
    mesh: dict[str, int]
    """Devices along each axis."""
    clips_per_shard: int
    """Clips of a batch, divided by the devices along `data` and `fsdp`: what --clips-per-chip sets."""
    fields: dict[str, str]
    """What the step was compiled for, without devices and batch."""
    seconds: dict[str, float]
    """The terms of the roofline."""
    peak_hbm_bytes: int
    """Bytes of HBM of one device."""


@dataclasses.dataclass(frozen=True)
class DataFigures:
    """What a data benchmark measured, as means over items or clips; seconds are those of one core."""

    source: str
    """Folder, or a description of synthetic items."""
    kind: str
    """Kind of the records: "captioned_videos" or "pose_images"."""
    frames_per_item: float
    bytes_per_item: float
    """Size of a record on disk."""
    load_seconds: float
    """Of a core, for a clip of a batch."""
    load_bytes: float
    """Bytes read for a clip."""
    prepare_seconds: float | None
    """Of a core, for an item that becomes a record; None where the records were there already."""
    num_frames: int
    stride: int
    height: int
    width: int
    random_crop: int | None
    cached_latents: bool


def read_step(file: Path) -> StepFigures:
    """The training step in the JSON of a compile check. UserError where there is none, or it does not fit."""
    found = _read_json(file)
    compiled, config = found.get("compiled"), found.get("config")
    if not isinstance(compiled, dict) or not isinstance(config, dict):
        raise UserError(f"{file}: is not the JSON of a compile check; write it with compile_tpu.py --json")
    if compiled.get("command") != "train":
        raise UserError(
            f"{file}: has the programs of `{compiled.get('command')}`; a plan needs a training step"
        )
    if found.get("chip") is None:
        raise UserError(
            f"{file}: was compiled for {compiled.get('topology')}, which has no published figures"
        )
    if not config.get("fits"):
        raise UserError(f"{file}: the step does not fit {compiled.get('topology')}")
    try:
        fingerprint = compiled["fingerprint"]
        mesh = {axis: int(size) for axis, size in (pair.split("=") for pair in fingerprint["mesh"].split())}
        shards = mesh["data"] * mesh["fsdp"]
        return StepFigures(
            str(file),
            compiled["topology"],
            Chip(**found["chip"]),
            compiled["devices"],
            mesh,
            int(fingerprint["data.batch_size"]) // shards,
            comparable_fields(fingerprint),
            {name: _positive(seconds, zero=True) for name, seconds in config["roofline"].items()},
            int(config["peak_hbm_bytes"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{file}: its compile check cannot be read ({reason(error)})") from error


def read_data(file: Path) -> DataFigures:
    """The figures of a data benchmark's JSON. Raises UserError for another file."""
    found = _read_json(file)
    if found.get("benchmark") != DATA_BENCHMARK:
        raise UserError(
            f"{file}: is not the JSON of a data benchmark; write it with benchmark.py {DATA_BENCHMARK} --json"
        )
    try:
        figures = {item.name: found[item.name] for item in dataclasses.fields(DataFigures)}
        for name in MEASURED:
            if figures[name] is not None or name != "prepare_seconds":
                figures[name] = _positive(figures[name])
        return DataFigures(**figures)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file}: its data benchmark cannot be read ({reason(error)})") from error


def comparable_fields(fingerprint: Mapping[str, str]) -> dict[str, str]:
    """The entries of a step's fingerprint that must agree for its figures to hold."""
    return {
        key: value for key, value in fingerprint.items() if key != "mesh" and not key.startswith(SAME_TIME)
    }


def check_step(
    step: StepFigures, chip: Chip, mesh: Mapping[str, int], clips_per_shard: int, fields: Mapping[str, str]
) -> None:
    """Raise UserError unless a step's figures hold for a run on these devices.

    They hold on any number of chips of the same kind (weak scaling), if each computes as many clips: a chip
    sends as much for a collective over many chips as over few, in the limit that `roofline` assumes. But a
    step on one shard of data sends no gradients, so it says nothing of a run on several.
    """
    if step.chip != chip:
        raise UserError(
            f"{step.file}: the step was compiled for {step.chip.name}, and the plan is for {chip.name}; "
            f"compile it for {chip.name}"
        )
    for key in dict.fromkeys((*fields, *step.fields)):
        if (made := step.fields.get(key)) != (asked := fields.get(key)):
            raise UserError(
                f"{step.file}: the step was compiled for {key}={made}, and the config has {asked}"
            )
    if step.clips_per_shard != clips_per_shard:
        raise UserError(
            f"{step.file}: the step has {step.clips_per_shard} clips a chip, and the plan {clips_per_shard}; "
            f"compile it with --clips-per-chip {clips_per_shard}"
        )
    for axis in ("fsdp", "frame"):
        if step.mesh[axis] != mesh[axis]:
            raise UserError(
                f"{step.file}: the step was compiled with mesh.{axis}={step.mesh[axis]}, and the plan has "
                f"{mesh[axis]}; give both the same, so that mesh.data alone differs"
            )
    if (step.mesh["data"] == 1) != (mesh["data"] == 1):
        raise UserError(
            f"{step.file}: the step was compiled with mesh.data={step.mesh['data']}, and the plan has "
            f"{mesh['data']}; with 1 no gradients are sent along it, so compile the step for that topology"
        )


def check_data(figures: DataFigures, file: Path, kind: str, data: Any) -> None:
    """Raise UserError unless a benchmark loaded the clips that a run's `data` (a DataConfig) asks for."""
    if figures.kind != kind:
        raise UserError(f"{file}: the benchmark loaded {figures.kind}, and the stage trains on {kind}")
    for name in DATA_FIELDS:
        if (measured := getattr(figures, name)) != (asked := getattr(data, name)):
            raise UserError(
                f"{file}: the benchmark was run with data.{name}={measured}, and the config has {asked}; "
                "run it with the config of the plan"
            )


def _positive(value: Any, zero: bool = False) -> float:
    value = float(value)
    if not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise ValueError(f"{value} is not a positive number")
    return value


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror or reason(error)})") from error
    except ValueError as error:
        raise UserError(f"{file}: is not JSON ({reason(error)})") from error
    if not isinstance(found, dict):
        raise UserError(f"{file}: is not a JSON object")
    return found
