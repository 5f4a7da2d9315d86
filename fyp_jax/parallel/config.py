"""The mesh as a config states it: devices along each axis, and who the processes are."""

from dataclasses import dataclass

from fyp_jax.options import config_field


@dataclass
class MeshConfig:
    """How many devices along each axis, and for several hosts without a cluster manager, who they are."""

    data: int = config_field(-1, "devices that share the clips; -1: all that are left")
    fsdp: int = config_field(1, "devices that share clips and large parameters; -1: the rest")
    frame: int = config_field(1, "devices that share the frames of a clip; -1: the rest")
    coordinator: str | None = config_field(
        None, "HOST:PORT of process 0, for hosts that are no Cloud TPU pod"
    )
    processes: int | None = config_field(None, "with coordinator: how many")
    process: int | None = config_field(None, "with coordinator: which one, from 0")
