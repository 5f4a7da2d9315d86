"""A compile check: the programs of a config, compiled for devices that need not be there, and measured."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from fyp_jax.config import SampleConfig
from fyp_jax.convert.pipeline_folder import PipelineFolder
from fyp_jax.models.pose_encoder import DOWNSCALE
from fyp_jax.parallel import make_mesh
from fyp_jax.tpu.measure import Measured, measure
from fyp_jax.tpu.programs import own_sizes, sampling_programs, training_programs
from fyp_jax.training.config import TrainConfig


def check(
    config: TrainConfig | SampleConfig,
    devices: Sequence[Any],
    clips_per_chip: int | None,
    say: Callable[[str], Any],
) -> dict[str, list[Measured]]:
    """Figures of each program of a config. Raises UserError as a run would, OverMemory where it does not fit."""
    pretrained, note = own_sizes(config.pretrained)
    if note:
        say(note)
    config = dataclasses.replace(config, pretrained=pretrained)
    if isinstance(config, SampleConfig):
        programs, count = sampling_programs(config, devices[0]), 1
        pixels = config.height * config.width
    else:
        if clips_per_chip is not None:
            data = dataclasses.replace(config.data, batch_size=clips_per_chip * len(devices))
            config = dataclasses.replace(config, data=data)
        programs, count = training_programs(config, make_mesh(config.mesh, devices)), len(devices)
        pixels = config.data.height * config.data.width
    widths = head_widths(pretrained, pixels // DOWNSCALE**2)
    return {"ours": [measure(program, count, widths)[0] for program in programs]}


def head_widths(pretrained: str, tokens: int) -> dict[int, int]:
    """Tokens of a frame at each level of the UNet -> width of an attention head there."""
    config = PipelineFolder(pretrained, parts=()).unet_config()
    levels = zip(config.block_out_channels, config.heads, strict=True)
    return {tokens // 4**i: width // heads for i, (width, heads) in enumerate(levels)}
