"""The mesh as a config states it: devices along each axis, and, for several hosts, which processes there
are."""

from dataclasses import dataclass

from fyp_jax.config import config_field


@dataclass
class MeshConfig:
    """Numbers of devices along each axis; without a cluster manager, also the processes of the run."""

    data: int = config_field(-1, "devices over which clips are divided; -1: all that are left")
    fsdp: int = config_field(
        1, "devices over which clips and large parameters are divided; -1: all that are left"
    )
    frame: int = config_field(1, "devices over which the frames of a clip are divided; -1: all that are left")
    coordinator: str | None = config_field(
        None, "HOST:PORT of process 0, for hosts that are no Cloud TPU pod"
    )
    num_processes: int | None = config_field(None, "with coordinator: number of processes")
    process_id: int | None = config_field(None, "with coordinator: index of this process, from 0")
