"""TPU chips and topologies: published figures, and devices to compile for on a machine without a TPU."""

import dataclasses
import importlib.util
import os
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from fyp_jax.errors import UserError, reason

LIBTPU_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # there is no metadata server, which a Cloud TPU machine has
    "TPU_ACCELERATOR_TYPE": "v5e-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_LOG_DIR": "disabled",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # other processes may compile at the same time
}
"""Variables that libtpu reads when it is loaded, so that it compiles without a TPU and without logs."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of one TPU chip."""

    name: str
    hbm_gib: int
    """Size of HBM in GiB."""
    peak_flops: float
    """Peak bfloat16 FLOPs per second of the matrix units."""
    hbm_bandwidth: float
    """Bytes of HBM per second, reads and writes together."""
    ici_bandwidth: float
    """Bytes per second that a chip sends over all of its ICI links; it receives as many at the same time."""
    cores: int = 1
    """Number of TensorCores."""
    mxu: int = 128
    """Rows and columns of a matrix unit; a TensorCore has four of them."""
    devices: int = 1
    """JAX devices that one chip is: its HBM, compute and links are divided among them."""

    @property
    def peak_transcendentals(self) -> float:
        """Numbers per second that the transcendental units take: a vector register of 1024 a cycle and core.

        The clock is not published for all chips. It follows from the peak of four matrix units a core.
        """
        cycles = self.peak_flops / (self.cores * 4 * 2 * self.mxu**2)
        return self.cores * 1024 * cycles

    def one_device(self) -> "Chip":
        """What one JAX device of the chip has."""
        n = self.devices
        return dataclasses.replace(
            self,
            hbm_gib=self.hbm_gib // n,
            peak_flops=self.peak_flops / n,
            hbm_bandwidth=self.hbm_bandwidth / n,
            ici_bandwidth=self.ici_bandwidth / n,
            cores=self.cores // n,
            devices=1,
        )


# cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}, "System architecture", read in 2026. These pages give the
# ICI bandwidth of both directions together (v5e 400 GB/s, v5p 1200, v6e 800, tpu7x 1200; an older page of v4:
# 2400 Gbit/s in one direction). The matrix unit is 256 x 256 from v6e on (.../system-architecture-tpu-vm).
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", hbm_gib=32, peak_flops=275e12, hbm_bandwidth=1200e9, ici_bandwidth=300e9, cores=2),
        Chip("v5e", hbm_gib=16, peak_flops=197e12, hbm_bandwidth=819e9, ici_bandwidth=200e9),
        Chip("v5p", hbm_gib=95, peak_flops=459e12, hbm_bandwidth=2765e9, ici_bandwidth=600e9, cores=2),
        Chip("v6e", hbm_gib=32, peak_flops=918e12, hbm_bandwidth=1638e9, ici_bandwidth=400e9, mxu=256),
        Chip("tpu7x", 192, 2307e12, hbm_bandwidth=7380e9, ici_bandwidth=600e9, cores=2, mxu=256, devices=2),
    )
}

MEGACORE = {"v4": {"chip_config_name": "megacore"}}
"""Options of a topology with which both cores of a chip are one device, as they are on a pod."""

HERE = "here"
"""The value of `--topology` that stands for the devices of this machine."""


def topology_devices(topology: str) -> tuple[Chip | None, Sequence[Any]]:
    """What one device of a topology such as `v5e:4x4` has, and its devices, for which programs can be
    compiled. A device is a chip, but for tpu7x, where it is half a chip.

    For `here`, these are the devices of this machine, and the chip is None. Raises UserError for a chip or a
    shape that is not known, or without libtpu.
    """
    if topology == HERE:
        return None, jax.devices()
    name, _, shape = topology.partition(":")
    if name not in CHIPS or not shape:
        raise UserError(
            f"--topology {topology}: unknown topology; give CHIP:SHAPE (v5e:4x4, v5p:2x2x1), with a chip of "
            f"{', '.join(CHIPS)}, or {HERE}"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("the TPU compiler is not installed: pip install -e '.[tpu]'")
    jax.config.update("jax_platforms", "cpu")  # JAX must not look for a TPU on this machine
    for variable, value in LIBTPU_ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    try:
        description = topologies.get_topology_desc(topology, platform="tpu", **MEGACORE.get(name, {}))
    except Exception as error:  # its type depends on the version of libtpu
        raise UserError(f"--topology {topology}: the TPU compiler refuses it: {reason(error)}") from error
    return CHIPS[name].one_device(), description.devices
