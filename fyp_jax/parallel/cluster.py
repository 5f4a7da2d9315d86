"""Connecting the processes of a run: by Cloud TPU's metadata, or by an address in the config."""

import os
import urllib.request

import jax

from fyp_jax.errors import UserError, reason
from fyp_jax.parallel.config import MeshConfig
from fyp_jax.platforms import has_tpu_chips


def initialize(config: MeshConfig, shutdown_timeout_seconds: int = 300) -> None:
    """Connect the processes of a run, before JAX uses a device: by Cloud TPU's metadata, or by the config's
    address.

    A process that ends waits for the others for `shutdown_timeout_seconds`. Raises UserError where only some
    of the three fields are given, or where the processes cannot be connected.
    """
    flags = {name: getattr(config, name) for name in ("coordinator", "num_processes", "process_id")}
    given = [name for name, value in flags.items() if value is not None]
    if given and len(given) < len(flags):
        missing = [f"mesh.{name}" for name in flags if name not in given]
        raise UserError(f"mesh.{given[0]} is given, but not {' and '.join(missing)}")
    if not given and not _on_tpu_pod():
        return
    try:
        if given:
            jax.distributed.initialize(
                config.coordinator,
                config.num_processes,
                config.process_id,
                shutdown_timeout_seconds=shutdown_timeout_seconds,
            )
        else:
            jax.distributed.initialize(shutdown_timeout_seconds=shutdown_timeout_seconds)
    except (RuntimeError, ValueError) as error:
        where = f"mesh.coordinator={config.coordinator}" if given else "the TPU pod"
        raise UserError(
            f"{where}: jax.distributed could not connect the processes ({reason(error)})"
        ) from error


def _on_tpu_pod() -> bool:
    """Whether this host is one of several: GKE says so in the environment, a TPU VM in its metadata."""
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES")
    if hosts is None and has_tpu_chips():
        hosts = _metadata("worker-network-endpoints")
    return len([host for host in (hosts or "").split(",") if host]) > 1


def _metadata(name: str) -> str:
    """An attribute of this virtual machine; empty on other machines."""
    server = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
    url = f"http://{server}/computeMetadata/v1/instance/attributes/{name}"
    request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read().decode()
    except OSError:
        return ""
