"""The mesh of devices, and what stands where on it. Nothing below this module knows that there is a mesh.

Axes: `data` and `fsdp` divide the clips of a batch, `frame` the frames of each clip. Large parameters, and
all that is shaped like them, are divided over `fsdp`; the rest is on every device.
"""

import dataclasses
import math
import os
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import struct
from flax.core.meta import AxisMetadata
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fyp_jax.errors import UserError, reason
from fyp_jax.options import option

AXES = ("data", "fsdp", "frame")
CLIPS = ("data", "fsdp")
"""Axes that divide the clips of a batch, the first one slowest."""

DEVICES, TPU_CHIPS = Path("/dev"), ("accel[0-9]*", "vfio/[0-9]*")
"""Where a TPU VM has its chips, up to v4 and from v5e on."""

SHARDED_SIZE = 2**14
"""Elements from which on a parameter is divided: below, a message costs more than what it saves."""


@dataclass
class MeshConfig:
    """How many devices along each axis, and for several hosts without a cluster manager, who they are."""

    data: int = option(-1, "devices that share the clips; -1: all that are left")
    fsdp: int = option(1, "devices that share clips and large parameters; -1: the rest")
    frame: int = option(1, "devices that share the frames of a clip; -1: the rest")
    coordinator: str | None = option(None, "HOST:PORT of process 0, for hosts that are no Cloud TPU pod")
    processes: int | None = option(None, "with coordinator: how many")
    process: int | None = option(None, "with coordinator: which one, from 0")


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


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """Of all devices, or of these; neighbours in `frame` are nearest. UserError where they do not fit."""
    devices = jax.devices() if devices is None else devices
    count, shape = len(devices), {axis: getattr(config, axis) for axis in AXES}
    text = " ".join(f"mesh.{axis}={size}" for axis, size in shape.items())
    if any(size < 1 and size != -1 for size in shape.values()) or list(shape.values()).count(-1) > 1:
        raise UserError(f"{text}: sizes are 1 or more, and one of them may be -1")
    known = math.prod(size for size in shape.values() if size != -1)
    if count % known or (-1 not in shape.values() and known != count):
        raise UserError(f"{text} does not fit the {count} device{'s' if count > 1 else ''} that there are")
    sizes = tuple(count // known if size == -1 else size for size in shape.values())
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def parameter_spec(shape: tuple[int, ...], mesh: Mesh, axes: tuple[str, ...] = ("fsdp",)) -> P:
    """Divides the largest dimension that can be (of equal ones the last) over axes; none of a small array."""
    size = math.prod(mesh.shape[axis] for axis in axes)
    fitting = [i for i, length in enumerate(shape) if length % size == 0]
    if size == 1 or math.prod(shape) < SHARDED_SIZE or not fitting:
        return P()
    axis = max(fitting, key=lambda i: (shape[i], i))
    return P(*(None,) * axis, axes[0] if len(axes) == 1 else axes)


def parameter_specs(tree: Any, mesh: Mesh, axes: tuple[str, ...] = ("fsdp",)) -> Any:
    """`parameter_spec` of each leaf, for parameters, gradients and optimizer moments alike."""
    return jax.tree.map(lambda leaf: parameter_spec(tuple(leaf.shape), mesh, axes), tree)


def shardings(specs: Any, mesh: Mesh) -> Any:
    """Partition specs as shardings on a mesh."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, P))


def place(tree: Any, mesh: Mesh, axes: tuple[str, ...] = ("fsdp",)) -> Any:
    """Arrays that every process holds whole -> the same, each device with its share (`parameter_spec`)."""

    def one(leaf: Any) -> jax.Array:
        sharding = NamedSharding(mesh, parameter_spec(leaf.shape, mesh, axes))
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(one, tree)


def clip_spec(axes: int) -> P:
    """Of an array of a batch: clips first and, if it has more than two axes, frames second."""
    return P(CLIPS, "frame") if axes > 2 else P(CLIPS)


def require_shares(batch_size: int, frames: int, mesh: Mesh) -> None:
    """Raise UserError where clips or frames cannot be shared out evenly."""
    shares = math.prod(mesh.shape[axis] for axis in CLIPS)
    if batch_size % shares:
        raise UserError(
            f"data.batch_size={batch_size} is not a multiple of {shares} (mesh.data times mesh.fsdp)"
        )
    if frames % mesh.shape["frame"]:
        raise UserError(f"data.frames={frames} is not a multiple of mesh.frame={mesh.shape['frame']}")


def local_rows(batch_size: int, mesh: Mesh) -> range:
    """Which clips of a global batch this process has to load: those of which a device of it holds a part."""
    sharding = NamedSharding(mesh, P(CLIPS))
    rows = [index[0].indices(batch_size)[:2] for index in _local_indices(sharding, (batch_size,)).values()]
    first, last = min(start for start, _ in rows), max(stop for _, stop in rows)
    return range(first, last)


def _local_indices(sharding: NamedSharding, shape: tuple[int, ...]) -> Mapping[Any, tuple[slice, ...]]:
    return sharding.addressable_devices_indices_map(shape)  # pyright: ignore[reportReturnType]


def place_batch(batch: Any, rows: range, batch_size: int, mesh: Mesh) -> Any:
    """Arrays with this process's `rows` of a batch -> global arrays, clips and frames shared out."""

    def one(leaf: np.ndarray) -> jax.Array:
        shape = (batch_size, *leaf.shape[1:])
        sharding = NamedSharding(mesh, clip_spec(leaf.ndim))

        def share(index: Any) -> np.ndarray:  # a slice for each axis
            start, stop, _ = index[0].indices(batch_size)
            return leaf[(slice(start - rows.start, stop - rows.start), *index[1:])]

        return jax.make_array_from_callback(shape, sharding, share)

    return jax.tree.map(one, batch)


def place_votes(vote: int, mesh: Mesh) -> jax.Array:
    """One vote for each device of the mesh, those of this process's devices being `vote`."""
    sharding = NamedSharding(mesh, P(AXES))
    return jax.make_array_from_callback((mesh.size,), sharding, lambda index: np.full(1, vote, np.int32))


def fetch(tree: Any, mesh: Mesh) -> Any:
    """Arrays of the mesh, whole, on this process's first device. All processes take part."""
    everywhere = jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, P()))(tree)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), everywhere)


def with_shares(
    function: Callable[..., Any], params: Any, mesh: Mesh, given: tuple[Any, ...], result: Any
) -> Callable[..., Any]:
    """function(params, *args) on every device, where each holds a share of the parameters (`in_shares`).

    `params`, or their shapes, are as `place` puts them with all axes; `given` and `result` are the partition
    specs of the other arguments and of the result. No gradient is taken through it.
    """
    specs = parameter_specs(params, mesh, AXES)

    def on_device(params: Any, *args: Any) -> Any:
        return function(in_shares(params, specs), *args)

    return jax.shard_map(on_device, mesh=mesh, in_specs=(specs, *given), out_specs=result, check_vma=False)


# What follows runs inside of a `shard_map` over the mesh.


@struct.dataclass
class Share(AxisMetadata[jax.Array]):
    """A device's share of a parameter, in a box that Flax opens at the layer that uses it.

    Opening it fetches the other shares; under a gradient it gives back the gradient's share. In a block that
    a gradient computes again they are fetched again, so what was fetched need not be kept.
    """

    value: jax.Array
    axes: Any = struct.field(pytree_node=False)
    """Of the mesh, over which it is divided."""
    dimension: int = struct.field(pytree_node=False)
    """Of the array, that is divided."""

    def unbox(self) -> jax.Array:
        return jax.lax.all_gather(self.value, self.axes, axis=self.dimension, tiled=True)

    def replace_boxed(self, val: Any) -> Any:
        return dataclasses.replace(self, value=val)

    def add_axis(self, index: int, params: dict[Any, Any]) -> Any:
        raise NotImplementedError("no layer of ours is stacked")

    def remove_axis(self, index: int, params: dict[Any, Any]) -> Any:
        raise NotImplementedError("no layer of ours is stacked")


def in_shares(params: Any, specs: Any) -> Any:
    """Shares of parameters, to be given to a Flax model in place of the parameters."""

    def one(share: jax.Array, spec: P) -> Any:
        divided = next((i for i, axes in enumerate(tuple(spec)) if axes is not None), None)
        return share if divided is None else Share(share, tuple(spec)[divided], divided)

    return jax.tree.map(one, params, specs)


def varying(x: jax.Array, spec: P) -> jax.Array:
    """The same numbers, with a type that says that each device may have its own, not along `spec` alone."""
    return jax.lax.pcast(x, tuple(axis for axis in AXES if axis not in tuple(spec)), to="varying")


def sum_of_shares(gradient: jax.Array, spec: P) -> jax.Array:
    """The sum over all devices; for a divided parameter `Share` did it over `fsdp`."""
    return jax.lax.psum(gradient, tuple(axis for axis in AXES if axis not in tuple(spec)))
