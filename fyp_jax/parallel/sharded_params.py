"""Parameters in shards: the layer that uses a parameter gathers its shards.

All but `fsdp_shard_map` runs inside of a `shard_map` over the mesh.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import struct
from flax.core.meta import AxisMetadata
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from fyp_jax.parallel.mesh import AXES, parameter_specs


def fsdp_shard_map(
    function: Callable[..., Any], params: Any, mesh: Mesh, given: tuple[Any, ...], result: Any
) -> Callable[..., Any]:
    """function(params, *args) on every device, where each holds a share of the parameters (`box_params`).

    `params`, or their shapes, are as `place` puts them with all axes; `given` and `result` are the partition
    specs of the other arguments and of the result. No gradient is taken through it.
    """
    specs = parameter_specs(params, mesh, AXES)

    def on_device(params: Any, *args: Any) -> Any:
        return function(box_params(params, specs), *args)

    return jax.shard_map(on_device, mesh=mesh, in_specs=(specs, *given), out_specs=result, check_vma=False)


# What follows runs inside of a `shard_map` over the mesh.


@struct.dataclass
class ShardedParam(AxisMetadata[jax.Array]):
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


def box_params(params: Any, specs: Any) -> Any:
    """Shares of parameters, to be given to a Flax model in place of the parameters."""

    def one(share: jax.Array, spec: P) -> Any:
        divided = next((i for i, axes in enumerate(tuple(spec)) if axes is not None), None)
        return share if divided is None else ShardedParam(share, tuple(spec)[divided], divided)

    return jax.tree.map(one, params, specs)


def pvary(x: jax.Array, spec: P) -> jax.Array:
    """The same numbers, with a type that says that each device may have its own, not along `spec` alone."""
    return jax.lax.pcast(x, tuple(axis for axis in AXES if axis not in tuple(spec)), to="varying")


def psum_gradient(gradient: jax.Array, spec: P) -> jax.Array:
    """The sum over all devices; for a divided parameter `Share` did it over `fsdp`."""
    return jax.lax.psum(gradient, tuple(axis for axis in AXES if axis not in tuple(spec)))
