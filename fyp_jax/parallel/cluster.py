"""Joining the processes of a run: by Cloud TPU's own means, or by an address in the config."""

import os
import urllib.request
from pathlib import Path

import jax

from fyp_jax.errors import UserError, reason
from fyp_jax.parallel.config import MeshConfig

DEVICES, TPU_CHIPS = Path("/dev"), ("accel[0-9]*", "vfio/[0-9]*")
"""Where a TPU VM has its chips, up to v4 and from v5e on."""


def initialize(config: MeshConfig) -> None:
    """Join the other processes, before JAX touches a device: on Cloud TPU by itself, elsewhere by the config.

    Raises UserError where only some of the three fields are given, or the others cannot be reached.
    """
    flags = {name: getattr(config, name) for name in ("coordinator", "processes", "process")}
    given = [name for name, value in flags.items() if value is not None]
    if given and len(given) < len(flags):
        missing = [f"mesh.{name}" for name in flags if name not in given]
        raise UserError(f"mesh.{given[0]} is given, but not {' and '.join(missing)}")
    if not given and not _on_tpu_pod():
        return
    try:
        if given:
            jax.distributed.initialize(config.coordinator, config.processes, config.process)
        else:
            jax.distributed.initialize()
    except (RuntimeError, ValueError) as error:
        where = f"mesh.coordinator={config.coordinator}" if given else "the TPU pod"
        raise UserError(f"{where}: the processes do not find each other ({reason(error)})") from error


def _on_tpu_pod() -> bool:
    """Whether this host has others beside it: GKE says so in the environment, a TPU VM where it is asked."""
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES")
    if hosts is None and any(next(DEVICES.glob(chips), None) for chips in TPU_CHIPS):
        hosts = _metadata("worker-network-endpoints")
    return len([host for host in (hosts or "").split(",") if host]) > 1


def _metadata(name: str) -> str:
    """An attribute of this virtual machine, empty on any other machine."""
    server = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
    url = f"http://{server}/computeMetadata/v1/instance/attributes/{name}"
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read().decode()
    except OSError:
        return ""
