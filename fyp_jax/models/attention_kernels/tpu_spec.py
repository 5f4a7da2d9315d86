"""What the forward and the backward kernel of TPU attention have in common."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from fyp_jax.models.attention_kernels.tpu_blocks import ChipBlocks

LOG2E = math.log2(math.e)
MASKED = -1e30
"""The score of a key that is padding: exp2 of it is 0, and no difference of it is NaN."""

CONTRACT_DEPTH = (((1,), (1,)), ((), ()))
CONTRACT_KEYS = (((0,), (0,)), ((), ()))
CONTRACT_QUERIES = (((0,), (1,)), ((), ()))
"""Dimension numbers of `dot`: which axis of either operand is summed."""

dot = functools.partial(jax.lax.dot_general, preferred_element_type=jnp.float32)


@dataclasses.dataclass(frozen=True)
class KernelSpec:
    """What both kernels of an attention need to know beside their operands' shapes."""

    heads: int
    valid_keys: int
    """Number of keys in each part; what follows them is padding."""
    blocks: ChipBlocks
    interpret: bool = False
    """True: run on any platform, slowly, for tests."""


def head_slice(head: int, dim: int) -> slice:
    """Where a head lies among the channels."""
    return slice(head * dim, (head + 1) * dim)


def scores_in_base_2(products: Float[Array, "m n"], dim: int) -> Float[Array, "m n"]:
    """Scores log2(e) q k / sqrt(d) of the products of keys and queries.

    The factor is taken here, in float32. Queries that held it would be rounded once more in bfloat16.
    """
    return products * (LOG2E * dim**-0.5)


def mask_scores(scores: Float[Array, "m n"], first_key: Any, spec: KernelSpec) -> Float[Array, "m n"]:
    """Scores of keys from `first_key` on, with those of padding at MASKED. Without padding, the scores."""
    if spec.valid_keys % scores.shape[0] == 0:
        return scores
    key = first_key + jax.lax.broadcasted_iota(jnp.int32, scores.shape, 0)
    return jnp.where(key < spec.valid_keys, scores, MASKED)


def part_row(row: Any, shared_by: int) -> Any:
    """Row of a part that row `row` of the queries reads, where `shared_by` rows in turn read the same."""
    if shared_by == 1:
        return row
    if isinstance(row, np.ndarray):
        return row // shared_by
    return jax.lax.div(row, jnp.int32(shared_by))  # `//` asks a TPU kernel for the sign, too


def out_like(x: Array, shape: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
    """A result that varies over the same axes of a `shard_map` as `x`."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(x).manual_axis_type)


def compiler_params(semantics: tuple[Any, ...], spec: KernelSpec) -> pltpu.CompilerParams:
    """Options of the compiler: which axes of the grid two cores may share, and how much VMEM there is."""
    limit = spec.blocks.vmem_mib * 2**20
    return pltpu.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=limit)


def block_bytes(grid: Sequence[int], specs: Sequence[pl.BlockSpec], arrays: Sequence[Any]) -> int:
    """Bytes of HBM that a kernel moves: each block counts as often as its index changes along the grid."""
    total = 0
    for spec, array in zip(specs, arrays, strict=True):
        shape: Any = spec.block_shape
        size = math.prod(n for n in shape if n is not None) * jnp.dtype(array.dtype).itemsize
        total += size * _index_changes(tuple(grid), spec.index_map)
    return total


def _index_changes(grid: tuple[int, ...], index_map: Any) -> int:
    """How often the index of a block differs from that of the grid step before it; the first counts."""
    steps = np.indices(grid).reshape(len(grid), -1)
    indices = np.stack([np.broadcast_to(axis, steps.shape[1]) for axis in index_map(*steps)])
    return 1 + int((np.diff(indices) != 0).any(axis=0).sum())
