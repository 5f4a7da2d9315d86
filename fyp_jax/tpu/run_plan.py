"""A plan of a training run: hours, loader, storage and preparation, from figures measured beforehand.

All of it is arithmetic. Times are lower bounds, as those of the roofline are.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from fyp_jax.tpu.plan_inputs import DataFigures

CHIPS_PER_HOST = 4
"""Chips of a host of a slice with several hosts, which all versions from v4 on have."""
HOST_CORES = {"v5e": 112, "v5p": 208}
"""vCPUs of such a host (cloud.google.com/tpu/docs/{v5e,v5p}, read in 2026)."""
LOADER = "loader"
SHARD_BYTES = 256 * 10**6
"""Size of a shard of records, prepare_data.py's default; one shard is the work of one worker."""


@dataclasses.dataclass(frozen=True)
class Hosts:
    """The hosts of a slice."""

    count: int
    clips: float
    """Clips that each loads for a step."""
    cores: int | None
    """vCPUs that each has; None where that is not known."""


@dataclasses.dataclass(frozen=True)
class Training:
    """What a run takes. A step takes as long as its slowest part: all run side by side, at their peak."""

    chips: int
    batch_size: int
    steps: int
    step_seconds: Mapping[str, float]
    """Seconds of a step by what needs them: the terms of the roofline, and the loader where a host's cores
    are known."""
    hosts: Hosts
    clips_per_second: float
    """Clips that the chips take, if the loader keeps up."""
    cores_per_host: float | None
    """Cores with which the loader of each host keeps up; None without a data benchmark."""
    read_per_host: float | None
    """Bytes a second that each host then reads."""

    @property
    def bound(self) -> str:
        """What a step takes longest for."""
        return max(self.step_seconds, key=lambda name: self.step_seconds[name])

    @property
    def hours(self) -> float:
        """Hours of all steps, at least."""
        return self.steps * self.step_seconds[self.bound] / 3600


@dataclasses.dataclass(frozen=True)
class LatentBytes:
    """Bytes of cached latents."""

    frame: int
    """Mean and standard deviation of a frame."""
    caption: int
    """Text embeddings of a caption."""


@dataclasses.dataclass(frozen=True)
class Storage:
    """Bytes on disk."""

    records: float | None
    latents: float | None
    """Cached latents in float16, without skeletons."""
    checkpoints: int


@dataclasses.dataclass(frozen=True)
class Preparation:
    """What it takes to make records of all items."""

    items: float
    core_hours: float
    workers: int
    """Workers of one core each that are put to it."""
    hours: float
    workers_for_a_day: int
    shards: int
    """Shards of the records: no more workers than that have work."""


def published_cores(chip: str, chips: int) -> int | None:
    """vCPUs of each host of a slice; None for other chips, and for a slice of less than a host."""
    return HOST_CORES.get(chip) if chips >= CHIPS_PER_HOST else None


def hosts_of(
    chips: int, devices_per_chip: int, mesh: Mapping[str, int], batch_size: int, cores: int | None
) -> Hosts:
    """The hosts of a slice, and the clips that each loads: those of which one of its devices has frames."""
    count = max(1, chips // CHIPS_PER_HOST)
    devices = chips // count * devices_per_chip
    shards = mesh["data"] * mesh["fsdp"]
    # neighbours along `frame` are nearest, so a host has whole clips, or a part of one shard's
    shards_of_host = max(1, min(shards, devices // mesh["frame"]))
    return Hosts(count, batch_size / shards * shards_of_host, cores)


def plan_training(
    roofline: Mapping[str, float],
    *,
    chips: int,
    batch_size: int,
    steps: int,
    hosts: Hosts,
    data: DataFigures | None,
) -> Training:
    """A run of `steps` steps, each of which takes the chips as long as the longest term of its roofline."""
    step_seconds, on_chips = dict(roofline), max(roofline.values())
    cores = read = None
    if data is not None:
        per_host = hosts.clips / on_chips
        cores, read = per_host * data.load_seconds, per_host * data.load_bytes
        if hosts.cores:
            step_seconds[LOADER] = hosts.clips * data.load_seconds / hosts.cores
    return Training(chips, batch_size, steps, step_seconds, hosts, batch_size / on_chips, cores, read)


def plan_storage(
    checkpoint_bytes: int,
    checkpoints: int,
    items: float | None,
    data: DataFigures | None,
    latents: LatentBytes,
) -> Storage:
    """Bytes of `checkpoints` checkpoints, and of the records of all items and their cached latents."""
    if items is None or data is None:
        return Storage(None, None, checkpoints * checkpoint_bytes)
    cached = items * (data.frames_per_item * latents.frame + latents.caption)
    records = None if data.cached_latents else items * data.bytes_per_item
    return Storage(records, cached, checkpoints * checkpoint_bytes)


def plan_preparation(items: float, data: DataFigures, workers: int) -> Preparation | None:
    """What making records of all items takes; None where the benchmark made none."""
    if data.prepare_seconds is None:
        return None
    core_hours = items * data.prepare_seconds / 3600
    shards = math.ceil(items * data.bytes_per_item / SHARD_BYTES)
    busy = min(workers, shards)
    return Preparation(items, core_hours, workers, core_hours / busy, math.ceil(core_hours / 24), shards)


@dataclasses.dataclass(frozen=True)
class Plan:
    """All parts of a plan."""

    training: Training
    storage: Storage
    preparation: Preparation | None
    notes: tuple[str, ...]
    """What the figures were taken from."""


def plan_json(plan: Plan) -> dict[str, Any]:
    """The plan as JSON: bytes, seconds and hours by the names of the fields."""
    training = {"hours": plan.training.hours, "bound": plan.training.bound}
    found = dataclasses.asdict(plan)
    return found | {"training": found["training"] | training}


def plan_lines(plan: Plan) -> Iterator[str]:
    """Lines of a table of the plan, and then its notes."""
    rows = list(_rows(plan))
    width = max(len(label) for label, _ in rows)
    for label, value in rows:
        yield f"{label:{width}}  {value}".rstrip()
    yield from ("", *plan.notes)


def _rows(plan: Plan) -> Iterator[tuple[str, str]]:
    run, storage, preparation = plan.training, plan.storage, plan.preparation
    yield "training", ""
    yield "  chips", str(run.chips)
    yield "  data.batch_size, clips", str(run.batch_size)
    yield "  steps", f"{run.steps}, {run.steps * run.batch_size:,} clips"
    for name, seconds in run.step_seconds.items():
        yield f"  {name}, ms a step", f"{1000 * seconds:.4g}"
    yield "  bound by", run.bound
    yield "  hours, at least", f"{run.hours:.3g}"
    yield "  chip hours, at least", f"{run.hours * run.chips:.4g}"
    yield "loader", ""
    yield "  clips a second that the chips take", f"{run.clips_per_second:.4g}"
    yield "  hosts", str(run.hosts.count)
    if run.cores_per_host is not None and run.read_per_host is not None:
        known = "" if run.hosts.cores is None else f" of {run.hosts.cores}"
        yield "  cores a host", f"{run.cores_per_host:.3g}{known}"
        yield "  data.workers, at least", str(math.ceil(run.cores_per_host))
        yield "  read, MB a second and host", f"{run.read_per_host / 1e6:.3g}"
    yield "storage", ""
    if storage.records is not None:
        yield "  records, TB", f"{storage.records / 1e12:.4g}"
    if storage.latents is not None:
        yield "  cached latents, TB", f"{storage.latents / 1e12:.4g}"
    yield "  checkpoints, GB", f"{storage.checkpoints / 1e9:.3g}"
    if preparation is not None:
        yield "preparation by Beam", ""
        yield "  items", f"{preparation.items:,.0f}"
        yield "  items a second and core", f"{preparation.items / preparation.core_hours / 3600:.3g}"
        yield "  core hours", f"{preparation.core_hours:,.0f}"
        yield f"  hours with {preparation.workers} workers", f"{preparation.hours:.3g}"
        yield "  workers for a day", str(preparation.workers_for_a_day)
        yield "  shards of 256 MB", f"{preparation.shards:,}"
