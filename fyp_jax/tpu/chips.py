"""TPU chips and how they are put together: published figures, and devices for the compiler without a chip."""

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.experimental import topologies

from fyp_jax.errors import UserError, reason

ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # of a Cloud TPU machine's metadata, which is not there
    "TPU_ACCELERATOR_TYPE": "v5e-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_LOG_DIR": "disabled",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # other processes may compile at the same time
}
"""What libtpu reads when it is loaded, so that it compiles quietly where no TPU is."""


@dataclass(frozen=True)
class Chip:
    """Figures of one chip."""

    name: str
    memory: int
    """GiB of HBM."""
    flops: float
    """Peak of the matrix units in bfloat16, a second."""
    bandwidth: float
    """Bytes of HBM a second."""
    links: float
    """Bytes a second that a chip sends over all of its links to other chips, and as many that it receives."""


# cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}, "System architecture", read in 2026. What these pages give for
# links is both ways together (v5e 400 GB/s, v5p 1200, v6e 800; v4 in an older form, 2400 Gbit/s one way).
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", memory=32, flops=275e12, bandwidth=1200e9, links=300e9),
        Chip("v5e", memory=16, flops=197e12, bandwidth=819e9, links=200e9),
        Chip("v5p", memory=95, flops=459e12, bandwidth=2765e9, links=600e9),
        Chip("v6e", memory=32, flops=918e12, bandwidth=1638e9, links=400e9),
    )
}

MEGACORE = {"v4": {"chip_config_name": "megacore"}}
"""What the compiler is told, so that both cores of a chip are one device, as they are on a pod."""

HERE = "here"
"""Instead of a topology: the devices of this machine, whatever they are."""


def topology_devices(topology: str) -> tuple[Chip | None, Sequence[Any]]:
    """`v5e:4x4` -> its chip, and devices that programs can be compiled for; `here` -> this machine's.

    The chip is None where we have no figures. Raises UserError for what is not known, or without libtpu.
    """
    if topology == HERE:
        return None, jax.devices()
    name, _, shape = topology.partition(":")
    if name not in CHIPS or not shape:
        raise UserError(
            f"--topology {topology} is not {HERE}, nor CHIP:SHAPE (v5e:4x4, v5p:2x2x1) with a chip of "
            + ", ".join(CHIPS)
        )
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("the TPU compiler is not installed: pip install -e '.[tpu]'")
    jax.config.update("jax_platforms", "cpu")  # nothing looks for a TPU of this machine
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    try:
        described = topologies.get_topology_desc(topology, platform="tpu", **MEGACORE.get(name, {}))
    except Exception as error:  # whatever kind libtpu and its version raise
        raise UserError(f"--topology {topology}: the TPU compiler says: {reason(error)}") from error
    return CHIPS[name], described.devices
