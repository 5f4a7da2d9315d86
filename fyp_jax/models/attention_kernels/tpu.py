"""Attention by Pallas kernels on a TPU, with its gradient: an `AttentionFn`.

Each part of keys and values is an operand of its own, and heads lie side by side among the channels as the
projections give them. So nothing is concatenated, repeated or laid out anew in HBM.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fyp_jax.models.attention_functions import Parts
from fyp_jax.models.attention_kernels.tpu_backward import attention_backward
from fyp_jax.models.attention_kernels.tpu_blocks import (
    CHIP_BLOCKS,
    LANES,
    ChipBlocks,
    largest_divisor,
    padded,
)
from fyp_jax.models.attention_kernels.tpu_few_tokens import tpu_attention
from fyp_jax.models.attention_kernels.tpu_forward import attention_forward
from fyp_jax.models.attention_kernels.tpu_spec import KernelSpec

MIN_SCORES = 256 * 256
"""From so many scores of one head on (queries times keys), the kernels are used."""
MAX_ROW = 4096
"""Queries are divided into rows of at most so many where all of them read the same keys, as a text's."""


@dataclasses.dataclass(frozen=True)
class PallasTpuAttention:
    """softmax(q [k_1 k_2 ...]^T / sqrt(d)) [v_1 v_2 ...] on the TPU chip `kind`.

    Small attentions, and those with parts of different sizes, go to `tpu_attention`.
    """

    kind: str
    """JAX's `device_kind`, a key of CHIP_BLOCKS."""
    blocks: ChipBlocks | None = None
    """Block sizes in place of the chip's."""
    min_scores: int = MIN_SCORES
    interpret: bool = False
    """True: run on any platform, slowly, for tests."""

    def takes(self, q: Float[Array, "g f n h d"], keys: Parts) -> bool:
        """Whether the kernels compute an attention of these shapes."""
        size, same = keys[0].shape[2], all(k.shape[2] == keys[0].shape[2] for k in keys)
        gradient = 4 * padded(_row(q, keys)) * q.shape[3] * q.shape[4]  # the backward kernel's largest array
        fits = gradient <= self._blocks.vmem_mib * 2**20 // 2
        return same and fits and q.shape[2] * size * len(keys) >= self.min_scores

    def __call__(self, q: Float[Array, "g f n h d"], keys: Parts, values: Parts) -> Float[Array, "g f n h d"]:
        if not self.takes(q, keys):
            return tpu_attention(q, keys, values)
        spec = KernelSpec(q.shape[3], keys[0].shape[2], self._blocks, self.interpret)
        row = _row(q, keys)
        rows = q.reshape(q.shape[0], -1, row, *q.shape[3:])
        flat = jax.tree.map(_flatten, (rows, tuple(keys), tuple(values)))
        out: Array = _attention(*_varying_alike(flat), spec)  # pyright: ignore
        return out[:, :row].reshape(q.shape)

    @property
    def _blocks(self) -> ChipBlocks:
        return self.blocks or CHIP_BLOCKS[self.kind]


def _row(q: Float[Array, "g f n h d"], keys: Parts) -> int:
    """How many queries become one row of a kernel: a frame's, or fewer where all read the same keys."""
    queries = q.shape[2]
    if queries % LANES or any(k.shape[1] > 1 for k in keys):
        return queries
    return largest_divisor(queries, MAX_ROW)


def _flatten(x: Float[Array, "g f n h d"]) -> Float[Array, "gf p c"]:
    """One row for each frame, with heads side by side, and tokens padded to whole tiles."""
    g, f, n, h, d = x.shape
    return jnp.pad(x.reshape(g * f, n, h * d), ((0, 0), (0, padded(n) - n), (0, 0)))


def _varying_alike(arrays: tuple) -> tuple:
    """The same arrays, all varying over each axis of a `shard_map` over which one of them does."""
    axes = frozenset[str]().union(*(_varying_axes(x) for x in jax.tree.leaves(arrays)))

    def vary(x: Array) -> Array:
        missing = tuple(sorted(axes - _varying_axes(x)))
        return jax.lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(vary, arrays)


def _varying_axes(x: Array) -> frozenset[str]:
    return jax.typeof(x).manual_axis_type.varying


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attention(q: Array, keys: tuple[Array, ...], values: tuple[Array, ...], spec: KernelSpec) -> Array:
    return attention_forward(q, keys, values, spec)[0]


def _forward(q: Array, keys: tuple[Array, ...], values: tuple[Array, ...], spec: KernelSpec):
    out, lse = attention_forward(q, keys, values, spec)
    return out, (q, keys, values, out, lse)


def _backward(spec: KernelSpec, saved: tuple, d_out: Array):
    q, keys, values, out, lse = saved
    d_q, d_keys, d_values = attention_backward(q, keys, values, out, lse, d_out, spec)

    def summed(gradient: Array, part: Array) -> Array:
        by_row = gradient.reshape(part.shape[0], -1, *part.shape[1:])
        return by_row[:, 0] if by_row.shape[1] == 1 else by_row.astype(jnp.float32).sum(1).astype(part.dtype)

    return d_q, tuple(map(summed, d_keys, keys)), tuple(map(summed, d_values, values))


_attention.defvjp(_forward, _backward)
