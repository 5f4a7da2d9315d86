"""A compile check: compiles the programs of a config for devices that need not exist, and measures them."""

import dataclasses
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fyp_jax.compilation_cache import Fingerprint, save_programs
from fyp_jax.convert.open_pipeline import open_pipeline
from fyp_jax.models.pose_encoder import DOWNSCALE
from fyp_jax.parallel.mesh import BATCH_AXES, make_mesh
from fyp_jax.pipeline.config import SampleConfig
from fyp_jax.pipeline.loading import resolve_checkpoint
from fyp_jax.tpu.program_stats import OutOfMemory, ProgramStats, compile_and_measure
from fyp_jax.tpu.programs import Programs, bundled_sizes, sampling_programs, training_programs
from fyp_jax.tpu.topologies import topology_devices
from fyp_jax.training.config import TrainConfig

log = logging.getLogger(__name__)

FALLBACK_TOPOLOGY = {
    1: "v5p:2x2x1",
    4: "v5p:2x2x1",
    8: "v5p:2x2x2",
    16: "v5p:2x2x4",
    32: "v5p:2x4x4",
    64: "v5p:4x4x4",
}
"""Number of chips -> the topology on which a baseline is measured that does not fit the requested one."""


class Variant(NamedTuple):
    """The programs of a config in one implementation (as configured, or the baseline), measured."""

    programs: list[ProgramStats]
    """Statistics of each program; empty if no chip has enough memory."""
    out_of_memory: OutOfMemory | None = None
    """Set if the programs do not fit the requested topology."""
    topology: str | None = None
    """The topology on which the programs were measured instead; None if there was no need, or none fits."""


class CompileCheck(NamedTuple):
    """The result of a compile check."""

    variants: dict[str, Variant]
    """`config`, and `baseline` if it was asked for."""
    chips: int
    """Number of chips that the config uses."""
    fingerprint: Fingerprint
    """What the programs of `config` were compiled for."""


def compile_check(
    config: TrainConfig | SampleConfig,
    devices: Sequence[Any],
    *,
    clips_per_chip: int | None = None,
    baseline: bool = False,
    save: Path | None = None,
) -> CompileCheck:
    """Compile the programs of a config for `devices` and measure them.

    `clips_per_chip` sets the batch size of training: so many clips for each part of the mesh that has clips
    of its own. With `baseline`, the config is also compiled in a plain implementation (see
    `training_programs`). `save` is a file for the compiled programs, which `aot_path=FILE` loads. Raises
    UserError as a run would, and OutOfMemory if the config does not fit.
    """
    if isinstance(config, SampleConfig):
        config = resolve_checkpoint(config)
    pretrained, note = bundled_sizes(config.pretrained)
    if note:
        log.warning(note)
    config = dataclasses.replace(config, pretrained=pretrained)
    if isinstance(config, TrainConfig) and clips_per_chip is not None:
        mesh = make_mesh(config.mesh, devices)
        shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
        data = dataclasses.replace(config.data, batch_size=clips_per_chip * shards)
        config = dataclasses.replace(config, data=data)
    programs, found = _measure(config, devices, False, save)
    variants = {"config": Variant(programs)}
    if baseline:
        variants["baseline"] = _measure_baseline(config, devices, found.devices)
    return CompileCheck(variants, found.devices, found.fingerprint)


def _measure(
    config: TrainConfig | SampleConfig, devices: Sequence[Any], baseline: bool, save: Path | None = None
) -> tuple[list[ProgramStats], Programs]:
    """Statistics of each program, and the programs."""
    if isinstance(config, SampleConfig):
        found, pixels = sampling_programs(config, devices, baseline), config.height * config.width
    else:
        found, pixels = (
            training_programs(config, devices, baseline),
            math.prod(config.data.clip_size),
        )
    dims = head_dims(config.pretrained, pixels // DOWNSCALE**2)
    measured = [compile_and_measure(program, found.devices, dims) for program in found.programs]
    if save is not None:
        save_programs(save, {stats.name: compiled for stats, compiled in measured}, found.fingerprint)
    return [stats for stats, _ in measured], found


def _measure_baseline(config: TrainConfig | SampleConfig, devices: Sequence[Any], used: int) -> Variant:
    """The baseline on `devices`, of which the config uses so many, or on larger chips, if it needs them."""
    try:
        return Variant(_measure(config, devices, True)[0])
    except OutOfMemory as error:
        out_of_memory = error
    count = len(devices)
    if isinstance(config, SampleConfig):  # a clip takes the first devices of a topology
        count = min((size for size in FALLBACK_TOPOLOGY if size >= used), default=0)
    topology = FALLBACK_TOPOLOGY.get(count)
    if topology is None:
        return Variant([], out_of_memory)
    try:
        return Variant(_measure(config, topology_devices(topology)[1], True)[0], out_of_memory, topology)
    except OutOfMemory as error:
        return Variant([], error)


def head_dims(pretrained: str, tokens: int) -> dict[int, int]:
    """Number of tokens of a frame at each level of the UNet -> head dimension of the attention there.

    `tokens` is the number at the first level; each level below has a quarter of it.
    """
    config = open_pipeline(pretrained, parts=()).unet_config()
    levels = zip(config.block_out_channels, config.heads, strict=True)
    return {tokens // 4**i: channels // heads for i, (channels, heads) in enumerate(levels)}
