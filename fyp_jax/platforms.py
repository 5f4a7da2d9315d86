"""The platform that a command runs on, TPU, GPU or CPU, which one place decides before JAX starts."""

import importlib.metadata
import importlib.util
import os
import sys
from pathlib import Path

DEVICES, TPU_CHIPS = Path("/dev"), ("accel[0-9]*", "vfio/[0-9]*")
"""Device files of a TPU VM: up to v4, and from v5e on."""


def has_tpu_chips() -> bool:
    """Whether this machine has TPU chips, by its device files."""
    return any(next(DEVICES.glob(chips), None) for chips in TPU_CHIPS)


def choose_platform() -> None:
    """Set JAX_PLATFORMS=cpu where the machine has no TPU and JAX no GPU plugin, unless the user has set it.

    JAX would otherwise load libtpu, where that is installed, and libtpu prints errors about the missing TPU.
    """
    if "JAX_PLATFORMS" in os.environ or has_tpu_chips() or _has_plugins():
        return
    os.environ["JAX_PLATFORMS"] = "cpu"
    if (jax := sys.modules.get("jax")) is not None:  # it has read the environment already
        jax.config.update("jax_platforms", "cpu")


def _has_plugins() -> bool:
    """Whether a plugin of JAX for another platform (CUDA, ROCm, Metal) is installed."""
    entry_points = importlib.metadata.entry_points(group="jax_plugins")
    return bool(entry_points) or importlib.util.find_spec("jax_plugins") is not None
