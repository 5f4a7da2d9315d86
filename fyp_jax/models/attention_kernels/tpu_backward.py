"""The backward kernel of attention on a TPU: gradients of queries and of all parts of keys and values.

Scores and weights are computed again from the logarithm that the forward kernel saves. They are
[keys, queries], as there; gradients are kept transposed, [channels, tokens].
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
    CONTRACT_QUERIES,
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


def attention_backward(
    q: Float[Array, "b n c"],
    keys: Sequence[Float[Array, "_ m c"]],
    values: Sequence[Float[Array, "_ m c"]],
    out: Float[Array, "b n c"],
    lse: Float[Array, "b h n"],
    d_out: Float[Array, "b n c"],
    spec: KernelSpec,
) -> tuple[Float[Array, "b n c"], list[Float[Array, "b m c"]], list[Float[Array, "b m c"]]]:
    """Gradients of queries, keys and values, of what `attention_forward` takes and gives.

    A part that several rows of `q` read gets one gradient for each of them.
    """
    batch, queries, width = q.shape
    keys_size, dim = keys[0].shape[1], width // spec.heads
    blocks = spec.blocks.backward.fitted(queries, keys_size, spec.heads, width)
    grid = (batch, keys_size // blocks.keys, queries // blocks.queries)
    of_queries = pl.BlockSpec((None, blocks.queries, width), lambda b, j, i: (b, i, 0))
    # The gradient of queries is complete with the last block of keys. Before that, its block stays the same.
    of_dq = pl.BlockSpec((None, blocks.queries, width), lambda b, j, i: (b, i * (j == grid[1] - 1), 0))
    of_lse = pl.BlockSpec((None, spec.heads, blocks.queries), lambda b, j, i: (b, 0, i))
    of_dkv = pl.BlockSpec((None, blocks.keys, width), lambda b, j, i: (b, j, 0))

    def of_keys(part: Array) -> pl.BlockSpec:
        shared_by = batch // part.shape[0]
        return pl.BlockSpec((None, blocks.keys, width), lambda b, j, i: (part_row(b, shared_by), j, 0))

    pairs = [t for pair in zip(keys, values, strict=True) for t in pair]
    operands = [q, out, d_out, lse, *pairs]
    specs = [of_queries, of_queries, of_queries, of_lse, *map(of_keys, pairs)]
    out_shape = [
        out_like(q, q.shape, q.dtype),
        *(out_like(q, (batch, *t.shape[1:]), t.dtype) for t in pairs),
    ]
    out_specs = [of_dq, *[of_dkv] * len(pairs)]
    scores = batch * spec.heads * queries * keys_size * len(keys)
    d_q, *d_pairs = pl.pallas_call(
        functools.partial(_kernel, spec=spec, blocks=blocks, dim=dim),
        grid=grid,
        in_specs=specs,
        out_specs=out_specs,
        out_shape=out_shape,
        scratch_shapes=[
            pltpu.VMEM((spec.heads, queries), jnp.float32),
            pltpu.VMEM((spec.heads, dim, queries), jnp.float32),
            *[pltpu.VMEM((spec.heads, dim, blocks.keys), jnp.float32)] * len(pairs),
        ],
        compiler_params=compiler_params(("parallel", "arbitrary", "arbitrary"), spec),
        cost_estimate=pl.CostEstimate(
            flops=10 * scores * dim,
            transcendentals=scores,
            bytes_accessed=block_bytes(grid, [*specs, *out_specs], [*operands, *out_shape]),
        ),
        interpret=spec.interpret,
        name=f"attention_backward_{spec.heads}x{dim}",
    )(*operands)
    return d_q, d_pairs[::2], d_pairs[1::2]


def _kernel(
    q_ref: Any,
    out_ref: Any,
    d_out_ref: Any,
    lse_ref: Any,
    *refs: Any,
    spec: KernelSpec,
    blocks: Blocks,
    dim: int,
) -> None:
    count = (len(refs) - 3) // 3
    pairs, d_q_ref, d_pairs = refs[:count], refs[count], refs[count + 1 : 2 * count + 1]
    delta_ref, d_q_sum, *d_sums = refs[2 * count + 1 :]
    keys_block, queries_block = pl.program_id(1), pl.program_id(2)
    at_queries = pl.ds(pl.multiple_of(queries_block * blocks.queries, blocks.queries), blocks.queries)

    @pl.when(keys_block == 0)
    def _():
        d_q_sum[:, :, at_queries] = jnp.zeros((spec.heads, dim, blocks.queries), jnp.float32)
        for head in range(spec.heads):
            columns = head_slice(head, dim)
            product = d_out_ref[:, columns].astype(jnp.float32) * out_ref[:, columns].astype(jnp.float32)
            delta_ref[head : head + 1, at_queries] = product.T.sum(axis=0, keepdims=True)

    @pl.when(queries_block == 0)
    def _():
        for ref in d_sums:
            ref[...] = jnp.zeros_like(ref)

    for first in range(0, spec.heads, blocks.heads_at_once):
        heads = range(first, min(first + blocks.heads_at_once, spec.heads))
        queries = {head: q_ref[:, head_slice(head, dim)] for head in heads}
        d_outs = {head: d_out_ref[:, head_slice(head, dim)] for head in heads}

        def step(i: Any, _: Any, heads: range = heads, queries: Any = queries, d_outs: Any = d_outs) -> None:
            start = pl.multiple_of(i * blocks.keys_at_once, blocks.keys_at_once)
            at = pl.ds(start, blocks.keys_at_once)
            for part in range(0, count, 2):
                k_ref, v_ref, d_k_sum, d_v_sum = *pairs[part : part + 2], *d_sums[part : part + 2]
                products = [dot(k_ref[at, head_slice(h, dim)], queries[h], CONTRACT_DEPTH) for h in heads]
                d_weights = [dot(v_ref[at, head_slice(h, dim)], d_outs[h], CONTRACT_DEPTH) for h in heads]
                for head, product, d_w in zip(heads, products, d_weights, strict=True):
                    s = mask_scores(scores_in_base_2(product, dim), keys_block * blocks.keys + start, spec)
                    weights = jnp.exp2(s - lse_ref[head : head + 1])
                    d_s = (weights * (d_w - delta_ref[head : head + 1, at_queries])).astype(q_ref.dtype)
                    d_v_sum[head, :, at] += dot(
                        d_outs[head], weights.astype(d_out_ref.dtype), CONTRACT_QUERIES
                    )
                    d_k_sum[head, :, at] += dot(queries[head], d_s, CONTRACT_QUERIES)
                    k = k_ref[at, head_slice(head, dim)]
                    d_q_sum[head, :, at_queries] += dot(k, d_s, CONTRACT_KEYS)

        jax.lax.fori_loop(0, blocks.keys // blocks.keys_at_once, step, None)

    @pl.when(queries_block == pl.num_programs(2) - 1)
    def _():
        for i, (ref, sums) in enumerate(zip(d_pairs, d_sums, strict=True)):
            factor = dim**-0.5 if i % 2 == 0 else 1  # keys, and then values
            for head in range(spec.heads):
                ref[:, head_slice(head, dim)] = (sums[head] * factor).T.astype(ref.dtype)

    @pl.when(keys_block == pl.num_programs(1) - 1)
    def _():
        for head in range(spec.heads):
            d_q = d_q_sum[head, :, at_queries] * dim**-0.5
            d_q_ref[:, head_slice(head, dim)] = d_q.T.astype(d_q_ref.dtype)
