"""A compile check: the programs of a config, compiled for devices that need not be there, and measured."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fyp_jax.compilation_cache import save_programs
from fyp_jax.config import SampleConfig
from fyp_jax.convert.pipeline_folder import PipelineFolder
from fyp_jax.models.pose_encoder import DOWNSCALE
from fyp_jax.tpu.chips import topology_devices
from fyp_jax.tpu.measure import OverMemory, ProgramStats, measure
from fyp_jax.tpu.programs import own_sizes, sampling_programs, training_programs
from fyp_jax.training.config import TrainConfig

FALLBACK_TOPOLOGY = {
    1: "v5p:2x2x1",
    4: "v5p:2x2x1",
    8: "v5p:2x2x2",
    16: "v5p:2x2x4",
    32: "v5p:2x4x4",
    64: "v5p:4x4x4",
}
"""By number of chips: where a plain program is measured that does not fit the chip asked for."""


class Column(NamedTuple):
    """One way of writing the programs of a config, measured."""

    programs: list[ProgramStats]
    refused: OverMemory | None = None
    """Why it is not measured on the chip that was asked for ..."""
    topology: str | None = None
    """... and on which it was instead; None with no programs: on none."""


class Check(NamedTuple):
    """Figures of a config, by how it is written, and the chips that it uses."""

    columns: dict[str, Column]
    chips: int


def check(
    config: TrainConfig | SampleConfig,
    devices: Sequence[Any],
    *,
    clips_per_chip: int | None = None,
    plain: bool = False,
    save: Path | None = None,
    say: Callable[[str], Any] = lambda line: None,
) -> Check:
    """Compile a config, with `plain` also as one would write it at first, and `save` the programs.

    Raises UserError as a run would, OverMemory where it does not fit the chip. `say` is told what is not
    just as the config has it.
    """
    pretrained, note = own_sizes(config.pretrained)
    if note:
        say(note)
    config = dataclasses.replace(config, pretrained=pretrained)
    if isinstance(config, TrainConfig) and clips_per_chip is not None:
        data = dataclasses.replace(config.data, batch_size=clips_per_chip * len(devices) // config.mesh.frame)
        config = dataclasses.replace(config, data=data)
    ours, chips = _measured(config, devices, False, save)
    columns = {"ours": Column(ours)}
    if plain:
        columns["plain"] = _plain(config, devices)
    return Check(columns, chips)


def _measured(
    config: TrainConfig | SampleConfig, devices: Sequence[Any], plain: bool, save: Path | None = None
) -> tuple[list[ProgramStats], int]:
    """Figures of each program, and how many devices share it."""
    if isinstance(config, SampleConfig):
        found, pixels = sampling_programs(config, devices, plain), config.height * config.width
    else:
        found, pixels = training_programs(config, devices, plain), config.data.height * config.data.width
    widths = head_widths(config.pretrained, pixels // DOWNSCALE**2)
    measured = [measure(program, found.devices, widths) for program in found.programs]
    if save is not None:
        save_programs(save, {figures.name: compiled for figures, compiled in measured}, found.fingerprint)
    return [figures for figures, _ in measured], found.devices


def _plain(config: TrainConfig | SampleConfig, devices: Sequence[Any]) -> Column:
    try:
        return Column(_measured(config, devices, True)[0])
    except OverMemory as error:
        refused = error
    topology = FALLBACK_TOPOLOGY.get(1 if isinstance(config, SampleConfig) else len(devices))
    if topology is None:
        return Column([], refused)
    try:
        return Column(_measured(config, topology_devices(topology)[1], True)[0], refused, topology)
    except OverMemory as error:
        return Column([], error)


def head_widths(pretrained: str, tokens: int) -> dict[int, int]:
    """Tokens of a frame at each level of the UNet -> width of an attention head there."""
    config = PipelineFolder(pretrained, parts=()).unet_config()
    levels = zip(config.block_out_channels, config.heads, strict=True)
    return {tokens // 4**i: width // heads for i, (width, heads) in enumerate(levels)}
