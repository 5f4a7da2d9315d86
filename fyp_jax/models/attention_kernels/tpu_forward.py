"""The forward kernel of attention on a TPU: softmax over keys in parts, without a copy of any part.

Scores are [keys, queries], so the largest score and the sum of weights of a query are reductions over
sublanes. The online softmax is that of FlashAttention (Dao et al. 2022), in base 2.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from fyp_jax.models.attention_kernels.tpu_blocks import Blocks
from fyp_jax.models.attention_kernels.tpu_spec import (
    CONTRACT_DEPTH,
    CONTRACT_KEYS,
    KernelSpec,
    block_bytes,
    compiler_params,
    dot,
    head_slice,
    mask_scores,
    out_like,
    part_row,
    scores_in_base_2,
)

SUBLANES = 16
"""Rows of a bfloat16 tile."""


def attention_forward(
    q: Float[Array, "b n c"],
    keys: Sequence[Float[Array, "_ m c"]],
    values: Sequence[Float[Array, "_ m c"]],
    spec: KernelSpec,
) -> tuple[Float[Array, "b n c"], Float[Array, "b h n"]]:
    """The attention, and the base-2 logarithm of each query's sum of exponentials.

    Row i of `q` reads row i // (b // r) of a part with r rows. `n` and `m` are multiples of 128; keys from
    `spec.valid_keys` on are padding.
    """
    batch, queries, width = q.shape
    keys_size, dim = keys[0].shape[1], width // spec.heads
    blocks = spec.blocks.forward.fitted(queries, keys_size, spec.heads, width)
    grid = (batch, queries // blocks.queries, keys_size // blocks.keys)
    rows = -(-(dim + 1) // SUBLANES) * SUBLANES
    of_queries = pl.BlockSpec((None, blocks.queries, width), lambda b, i, j: (b, i, 0))
    of_lse = pl.BlockSpec((None, spec.heads, blocks.queries), lambda b, i, j: (b, 0, i))

    def of_keys(part: Array) -> pl.BlockSpec:
        shared_by = batch // part.shape[0]
        return pl.BlockSpec((None, blocks.keys, width), lambda b, i, j: (part_row(b, shared_by), j, 0))

    operands = [q, *(t for pair in zip(keys, values, strict=True) for t in pair)]
    specs = [of_queries, *map(of_keys, operands[1:])]
    scores = batch * spec.heads * queries * keys_size * len(keys)
    out_shape = [out_like(q, q.shape, q.dtype), out_like(q, (batch, spec.heads, queries), jnp.float32)]
    out_specs = [of_queries, of_lse]
    return pl.pallas_call(
        functools.partial(_kernel, spec=spec, blocks=blocks, dim=dim),
        grid=grid,
        in_specs=specs,
        out_specs=out_specs,
        out_shape=out_shape,
        scratch_shapes=[
            pltpu.VMEM((spec.heads, blocks.queries), jnp.float32),
            pltpu.VMEM((spec.heads, rows, blocks.queries), jnp.float32),
        ],
        compiler_params=compiler_params(("parallel", "parallel", "arbitrary"), spec),
        cost_estimate=pl.CostEstimate(
            flops=4 * scores * dim,
            transcendentals=scores,
            bytes_accessed=block_bytes(grid, [*specs, *out_specs], [*operands, *out_shape]),
        ),
        interpret=spec.interpret,
        name=f"attention_forward_{spec.heads}x{dim}",
    )(*operands)


def _kernel(q_ref: Any, *refs: Any, spec: KernelSpec, blocks: Blocks, dim: int) -> None:
    *parts, out_ref, lse_ref, largest_ref, sum_ref = refs
    keys_block = pl.program_id(2)

    @pl.when(keys_block == 0)
    def _():
        largest_ref[...] = jnp.full_like(largest_ref, -jnp.inf)
        sum_ref[...] = jnp.zeros_like(sum_ref)

    for first in range(0, spec.heads, blocks.heads_at_once):
        heads = range(first, min(first + blocks.heads_at_once, spec.heads))
        queries = {head: q_ref[:, head_slice(head, dim)] for head in heads}

        def step(i: Any, _: Any, heads: range = heads, queries: Any = queries) -> None:
            start = pl.multiple_of(i * blocks.keys_at_once, blocks.keys_at_once)
            at = pl.ds(start, blocks.keys_at_once)
            for k_ref, v_ref in zip(parts[::2], parts[1::2], strict=True):
                products = [dot(k_ref[at, head_slice(h, dim)], queries[h], CONTRACT_DEPTH) for h in heads]
                for head, product in zip(heads, products, strict=True):
                    values = v_ref[at, head_slice(head, dim)]
                    masked = mask_scores(
                        scores_in_base_2(product, dim), keys_block * blocks.keys + start, spec
                    )
                    _add_block(masked, values, largest_ref, sum_ref, head)

        jax.lax.fori_loop(0, blocks.keys // blocks.keys_at_once, step, None)

    @pl.when(keys_block == pl.num_programs(2) - 1)
    def _():
        for head in range(spec.heads):
            read, total = sum_ref[head, :dim], sum_ref[head, dim : dim + 1]
            out_ref[:, head_slice(head, dim)] = (read / total).T.astype(out_ref.dtype)
            lse_ref[head : head + 1] = largest_ref[head : head + 1] + jnp.log2(total)


def _add_block(
    scores: Float[Array, "m n"], values: Float[Array, "m d"], largest_ref: Any, sum_ref: Any, head: int
) -> None:
    """Add a block of keys to the running softmax of a head. Row d of the sum is that of the weights."""
    before = largest_ref[head : head + 1]
    largest = jnp.maximum(before, scores.max(axis=0, keepdims=True))
    weights = jnp.exp2(scores - largest).astype(values.dtype)
    ones = jnp.ones((values.shape[0], sum_ref.shape[1] - values.shape[1]), values.dtype)
    read = dot(jnp.concatenate([values, ones], axis=1), weights, CONTRACT_KEYS)
    largest_ref[head : head + 1] = largest
    sum_ref[head] = jnp.exp2(before - largest) * sum_ref[head] + read
