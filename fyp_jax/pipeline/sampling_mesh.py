"""The devices of sampling: those that make one clip together, and those that make clips of their own."""

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from fyp_jax.errors import UserError
from fyp_jax.parallel.config import MeshConfig
from fyp_jax.parallel.mesh import make_mesh
from fyp_jax.pipeline.config import SampleConfig

log = logging.getLogger(__name__)


def sampling_mesh(config: SampleConfig, devices: Sequence[Any], trained_frames: int) -> Mesh | None:
    """A mesh of the first devices, as many as a config asks for; None for a single device.

    `trained_frames` is the window of weights for which the config says none. Raises UserError where there are
    fewer devices.
    """
    mesh = _fill(config, len(devices), config.num_frames > (config.window or trained_frames))
    require_devices(mesh, len(devices))
    size = mesh.data * mesh.frame
    return None if size == 1 else make_mesh(mesh, devices[:size])


def require_devices(mesh: MeshConfig, count: int) -> None:
    """Raise UserError where a mesh needs more devices than there are; -1 needs one at least."""
    size = abs(mesh.data) * abs(mesh.frame)
    if size > count:
        raise UserError(
            f"mesh.data={mesh.data} mesh.frame={mesh.frame} needs {size} devices; there are {count}"
        )


def _fill(config: SampleConfig, count: int, in_windows: bool) -> MeshConfig:
    """The config's mesh for `count` devices, with a number in place of -1: as many devices as are left.

    The windows of a long clip take any number along `data`, a clip of one window at most two.
    """
    data, frame = config.mesh.data, config.mesh.frame
    if frame == -1:
        frame = max(1, count // data)
    if data == -1:
        left = max(1, count // frame)
        data = left if in_windows else min(left, 2)
        if data < left:
            log.warning(
                "mesh.data=-1: %d of %d devices make this clip: its %d frames are one window, and mesh.data "
                "divides that into the two branches of guidance; mesh.frame divides frames",
                data * frame,
                count,
                config.num_frames,
            )
    return dataclasses.replace(config.mesh, data=data, frame=frame)


def devices_of(mesh: Mesh | None, devices: Sequence[Any]) -> list[Any]:
    """The devices of a mesh; without a mesh the first of `devices`."""
    return list(devices[:1] if mesh is None else mesh.devices.flatten())


def check_batch_mesh(mesh: MeshConfig) -> None:
    """Raise UserError for a mesh that divides single clips: those of --prompts are made whole on a device."""
    if (mesh.data < 1 and mesh.data != -1) or mesh.fsdp != 1 or mesh.frame != 1:
        raise UserError(
            f"mesh.data={mesh.data} mesh.fsdp={mesh.fsdp} mesh.frame={mesh.frame}: with --prompts each "
            "device makes whole clips: give their number as mesh.data (-1: all), and mesh.fsdp=1 mesh.frame=1"
        )


def batch_devices(mesh: MeshConfig) -> list[Any]:
    """The devices of this process that make clips: its share of `mesh.data`, or all of them for -1.

    Raises UserError where there are fewer, and where `mesh.data` does not divide over the processes.
    """
    local, processes = jax.local_devices(), jax.process_count()
    if mesh.data == -1:
        return local
    if mesh.data % processes:
        raise UserError(
            f"mesh.data={mesh.data} is not a multiple of the {processes} processes; -1 is all their devices"
        )
    size = mesh.data // processes
    if size > len(local):
        raise UserError(f"mesh.data={mesh.data} needs {size} devices in each process; here are {len(local)}")
    return local[:size]
