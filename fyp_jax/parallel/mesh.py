"""The mesh of devices, and which shard of each array a device holds.

Axes: `data` and `fsdp` divide the clips of a batch, `frame` the frames of each clip. Large parameters, and
all arrays of their shape, are divided over `fsdp`; every device holds all of the rest.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fyp_jax.errors import UserError
from fyp_jax.parallel.config import MeshConfig

AXES = ("data", "fsdp", "frame")
BATCH_AXES = ("data", "fsdp")
"""Axes that divide the clips of a batch, the first one slowest."""

MIN_SHARD_SIZE = 2**14
"""Parameters with fewer elements are not divided: the message would cost more than the memory saves."""


def make_mesh(config: MeshConfig, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of all devices, or of these; neighbours along `frame` are nearest. UserError where sizes do not
    fit."""
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
    """A spec that divides the largest dimension that divides (of equal ones the last) over axes; none of a
    small array."""
    size = math.prod(mesh.shape[axis] for axis in axes)
    fitting = [i for i, length in enumerate(shape) if length % size == 0]
    if size == 1 or math.prod(shape) < MIN_SHARD_SIZE or not fitting:
        return P()
    axis = max(fitting, key=lambda i: (shape[i], i))
    return P(*(None,) * axis, axes[0] if len(axes) == 1 else axes)


def parameter_specs(tree: Any, mesh: Mesh, axes: tuple[str, ...] = ("fsdp",)) -> Any:
    """`parameter_spec` of each leaf, for parameters, gradients and optimizer state alike."""
    return jax.tree.map(lambda leaf: parameter_spec(tuple(leaf.shape), mesh, axes), tree)


def shardings(specs: Any, mesh: Mesh) -> Any:
    """Partition specs as shardings on a mesh."""
    return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs, is_leaf=lambda x: isinstance(x, P))


def shard_params(tree: Any, mesh: Mesh, axes: tuple[str, ...] = ("fsdp",)) -> Any:
    """Arrays that every process holds whole -> global arrays, each device with its shard
    (`parameter_spec`)."""

    def one(leaf: Any) -> jax.Array:
        sharding = NamedSharding(mesh, parameter_spec(leaf.shape, mesh, axes))
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(one, tree)


def clip_spec(axes: int) -> P:
    """The spec of an array of a batch: clips come first and, if it has more than three axes, frames second.

    Texts have at most three: clips, tokens, channels.
    """
    return P(BATCH_AXES, "frame") if axes > 3 else P(BATCH_AXES)


def check_divisible(batch_size: int, num_frames: int, mesh: Mesh) -> None:
    """Raise UserError where clips or frames do not divide evenly over the mesh."""
    shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if batch_size % shards:
        raise UserError(
            f"data.batch_size={batch_size} is not a multiple of {shards} (mesh.data times mesh.fsdp)"
        )
    if num_frames % mesh.shape["frame"]:
        raise UserError(f"data.num_frames={num_frames} is not a multiple of mesh.frame={mesh.shape['frame']}")


def process_batch_range(batch_size: int, mesh: Mesh) -> range:
    """The clips of a global batch that this process loads: those of which one of its devices holds a part."""
    sharding = NamedSharding(mesh, P(BATCH_AXES))
    rows = [index[0].indices(batch_size)[:2] for index in _local_indices(sharding, (batch_size,)).values()]
    first, last = min(start for start, _ in rows), max(stop for _, stop in rows)
    return range(first, last)


def _local_indices(sharding: NamedSharding, shape: tuple[int, ...]) -> Mapping[Any, tuple[slice, ...]]:
    return sharding.addressable_devices_indices_map(shape)  # pyright: ignore[reportReturnType]


def shard_batch(batch: Any, rows: range, batch_size: int, mesh: Mesh) -> Any:
    """Arrays with this process's `rows` of a batch -> global arrays, with clips and frames divided over the
    mesh."""

    def one(leaf: np.ndarray) -> jax.Array:
        shape = (batch_size, *leaf.shape[1:])
        sharding = NamedSharding(mesh, clip_spec(leaf.ndim))

        def shard(index: Any) -> np.ndarray:  # a slice for each axis
            start, stop, _ = index[0].indices(batch_size)
            return leaf[(slice(start - rows.start, stop - rows.start), *index[1:])]

        return jax.make_array_from_callback(shape, sharding, shard)

    return jax.tree.map(one, batch)


def shard_stop_signal(stop_signal: int, mesh: Mesh) -> jax.Array:
    """A global array with one stop signal per device of the mesh; this process's devices have
    `stop_signal`."""
    sharding = NamedSharding(mesh, P(AXES))
    return jax.make_array_from_callback(
        (mesh.size,), sharding, lambda index: np.full(1, stop_signal, np.int32)
    )


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Arrays of the mesh, whole, on this process's first device. All processes must call it."""
    everywhere = jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, P()))(tree)
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), everywhere)
