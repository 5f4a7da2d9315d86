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
    function: Callable[..., Any], params: Any, mesh: Mesh, in_specs: tuple[Any, ...], out_specs: Any
) -> Callable[..., Any]:
    """function(params, *args) on every device, where each device holds a shard of the parameters
    (`box_params`).

    `params`, or their shapes, are placed by `shard_params` over all axes; `in_specs` and `out_specs` are the
    partition specs of the other arguments and of the result. No gradient can be taken through it.
    """
    specs = parameter_specs(params, mesh, AXES)

    def on_device(params: Any, *args: Any) -> Any:
        return function(box_params(params, specs), *args)

    return jax.shard_map(
        on_device, mesh=mesh, in_specs=(specs, *in_specs), out_specs=out_specs, check_vma=False
    )


@struct.dataclass
class ShardedParam(AxisMetadata[jax.Array]):
    """A device's shard of a parameter, in a box that Flax opens at the layer that uses the parameter.

    Opening it gathers the other shards; the gradient of that is the gradient's shard. A block that is
    rematerialised gathers them a second time, so that gathered parameters need not be kept.
    """

    value: jax.Array
    axes: Any = struct.field(pytree_node=False)
    """Axes of the mesh over which the parameter is divided."""
    dimension: int = struct.field(pytree_node=False)
    """Dimension of the parameter that is divided."""

    def unbox(self) -> jax.Array:
        return jax.lax.all_gather(self.value, self.axes, axis=self.dimension, tiled=True)

    def replace_boxed(self, val: Any) -> Any:
        return dataclasses.replace(self, value=val)

    def add_axis(self, index: int, params: dict[Any, Any]) -> Any:
        raise NotImplementedError("no layer of this package is stacked by nn.scan or nn.vmap")

    def remove_axis(self, index: int, params: dict[Any, Any]) -> Any:
        raise NotImplementedError("no layer of this package is stacked by nn.scan or nn.vmap")


def box_params(params: Any, specs: Any) -> Any:
    """Shards of parameters in boxes, which a Flax model takes in place of the parameters."""

    def one(shard: jax.Array, spec: P) -> Any:
        divided = next((i for i, axes in enumerate(tuple(spec)) if axes is not None), None)
        return shard if divided is None else ShardedParam(shard, tuple(spec)[divided], divided)

    return jax.tree.map(one, params, specs)


def pvary(x: jax.Array, spec: P) -> jax.Array:
    """The same numbers, with the type of an array that may differ between devices, not along `spec` alone."""
    return jax.lax.pcast(x, tuple(axis for axis in AXES if axis not in tuple(spec)), to="varying")


def psum_gradient(gradient: jax.Array, spec: P) -> jax.Array:
    """The sum of a gradient over all devices; `ShardedParam` has already summed a divided one over `fsdp`."""
    return jax.lax.psum(gradient, tuple(axis for axis in AXES if axis not in tuple(spec)))
