"""Cached latents: the frozen encoders of a run, over the frames and captions of its records, once.

Each process encodes groups of records of its own on its own devices, and a group is written whole or not at
all. So a run may be killed, and resumed with another number of processes.
"""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import unflatten_dict
from jax.experimental import multihost_utils
from tqdm import tqdm

from fyp_jax.data.datasets import RecordsError, open_records
from fyp_jax.data.example_source import RecordSource
from fyp_jax.data.ingest.progress import locked_log, log_path
from fyp_jax.data.latent_shards import Group, finish, finish_moving, read_group, write_group
from fyp_jax.data.latents import CLIPS, VERSION, CacheSpec, LatentSource, open_latents
from fyp_jax.errors import UserError, wrap_write_errors
from fyp_jax.models.encoders import ENCODERS
from fyp_jax.parallel.cluster import initialize
from fyp_jax.parallel.mesh import make_mesh
from fyp_jax.training.config import TrainConfig
from fyp_jax.training.init import InitialState, initialize_weights
from fyp_jax.training.mesh_encoders import MeshEncoders
from fyp_jax.training.stages import check_cachable, check_kind, get_stage

RECORDS_PER_SHARD = {"captioned_videos": 16, "pose_images": 2048}
"""Records of a group, by their kind: some hundred MB of latents at 512x512."""
PLAN_FILE = "plan.json"


def cache_latents(
    config: TrainConfig,
    out: Path,
    *,
    dtype: str = "float16",
    records_per_shard: int | None = None,
    frames_per_device: int = 8,
    overwrite: bool = False,
) -> LatentSource | None:
    """Write the latents of the records of a run's config to the folder `out`, or resume that.

    The frames of a batch, `frames_per_device` for each device, are divided over all devices of a process,
    whatever the axes of the mesh. The first process gets the cache, the others None. Raises UserError where
    there is nothing to cache (`check_cachable`), where `out` holds a cache of something else (unless
    `overwrite`), where numbers are too large for `dtype`, and where the same command is running.
    """
    if config.data.cached_latents:
        raise UserError("data.cached_latents=true: give the records to encode, data.path=FOLDER, without it")
    stage = get_stage(config.stage)
    check_cachable(config.data, stage)
    initialize(config.mesh)
    make_mesh(config.mesh)  # raises for sizes that do not fit
    records = open_records(config.data.source)
    check_kind(records.kind, stage, config.data.source)
    run = dataclasses.replace(config, data=dataclasses.replace(config.data, cached_latents=True))
    begin = initialize_weights(run, stage, None)
    spec = _cache_spec(config, begin, records, dtype, records_per_shard)
    encoders = begin.models.encoders
    params = {path: x for path, x in begin.frozen.items() if path.split("/")[0] in ENCODERS}
    del begin  # and with it the UNet
    work, first = out / "latents.incomplete", jax.process_index() == 0
    with wrap_write_errors(work), _lock(out):
        if first:
            finish_moving(out, work)
        _wait("looked")
        if (out / CLIPS / VERSION).exists() and (found := _whole_cache(out, overwrite)) is not None:
            if found.spec == spec:
                return found if first else None
            if not overwrite:
                what = _differing(found.spec._asdict(), spec)
                raise UserError(f"{out}: holds latents of another {what}; --overwrite replaces them")
        if first:
            _start(work, spec, overwrite)
        _wait("started")
        encode = MeshEncoders(encoders, unflatten_dict(params, sep="/"), frames_per_device, dtype)
        _encode_groups(work, spec, records, config, encode)
        _wait("encoded")
        if first:
            whole = _whole_groups(work, spec, len(records))
            finish(out, work, spec, whole, encode.texts([""])[0])
        _wait("finished")
    return open_latents(out) if first else None


def _whole_cache(out: Path, overwrite: bool) -> LatentSource | None:
    """The cache that is there; None for a damaged one that is to be replaced. Raises RecordsError."""
    try:
        return open_latents(out)
    except RecordsError:
        if not overwrite:
            raise
        return None


@contextlib.contextmanager
def _lock(out: Path) -> Iterator[None]:
    """Hold the lock of this process's part of a cache. Raises UserError where another process has it."""
    part = out / f"latents.process-{jax.process_index()}"
    with locked_log(part):
        try:
            yield
        finally:
            log_path(part).unlink(missing_ok=True)


def _cache_spec(
    config: TrainConfig, begin: InitialState, records: RecordSource, dtype: str, records_per_shard: int | None
) -> CacheSpec:
    assert begin.encoder_checksums is not None
    sizes, data = begin.models.encoders.spec, config.data
    grid = data.height // sizes.downscale, data.width // sizes.downscale
    return CacheSpec(
        kind=records.kind,
        records=records.fingerprint,
        height=data.height,
        width=data.width,
        encoders=begin.encoder_checksums,
        computed_in=f"{config.dtype}, weights {config.frozen_dtype}",
        stored_in=dtype,
        latent=[*grid, sizes.latent_channels],
        text=[sizes.tokens, sizes.text_width],
        records_per_shard=records_per_shard or RECORDS_PER_SHARD[records.kind],
    )


def _groups(spec: CacheSpec, records: int) -> range:
    return range(-(-records // spec.records_per_shard))


def _encode_groups(
    work: Path, spec: CacheSpec, records: RecordSource, config: TrainConfig, encode: MeshEncoders
) -> None:
    """Write those groups of this process that are not whole yet."""
    mine = _groups(spec, len(records))[jax.process_index() :: jax.process_count()]
    todo = [index for index in mine if read_group(work, index) is None]

    def count(groups: range | list[int]) -> int:
        size = spec.records_per_shard
        return sum(min(size, len(records) - size * index) for index in groups)

    done = count(mine) - count(todo)
    with tqdm(total=count(mine), initial=done, unit=" clips", dynamic_ncols=True) as progress:
        for index in todo:
            functions = encode.frames, encode.texts, progress.update
            write_group(work, index, spec, records, config.data, *functions)


def _whole_groups(work: Path, spec: CacheSpec, records: int) -> list[Group]:
    """All groups of all processes. Raises UserError where one is missing."""
    groups = []
    for index in _groups(spec, records):
        if (group := read_group(work, index)) is None:
            raise UserError(
                f"{work}: shard {index} is missing; all processes must write into one shared folder"
            )
        groups.append(group)
    return groups


def _start(work: Path, spec: CacheSpec, overwrite: bool) -> None:
    """Make the folder of an unfinished run, or check that the one that is there is of this spec."""
    plan = work / PLAN_FILE
    try:
        found = json.loads(plan.read_text())
    except (OSError, ValueError):
        found = None
    if found is not None and (differing := _differing(found, spec)):
        if not overwrite:
            raise UserError(
                f"{work}: an unfinished run of another {differing} is here; --overwrite starts over"
            )
        found = None
    if found is None:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        plan.write_text(json.dumps(spec._asdict()))


def _differing(found: dict[str, Any], spec: CacheSpec) -> str:
    names = [name for name, value in spec._asdict().items() if found.get(name) != value]
    return " and ".join(name.replace("_", " ") for name in names)


def _wait(event: str) -> None:
    """Wait until all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"cached latents: {event}")
