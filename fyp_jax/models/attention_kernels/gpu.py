"""Attention by `jax.nn.dot_product_attention`: in cuDNN on NVIDIA GPUs, or in XLA."""

import jax
from einops import rearrange
from jaxtyping import Array, Float

from fyp_jax.models.attention_functions import MIN_BLOCKWISE_SCORES, Parts, blockwise_attention, concat_kv

MAX_CUDNN_HEAD_DIM = 128
"""cuDNN's flash attention takes heads up to this width on all GPUs that it runs on, in steps of 8."""


def cudnn_attention(q: Float[Array, "g f n h d"], keys: Parts, values: Parts) -> Float[Array, "g f n h d"]:
    """Attention in cuDNN; `blockwise_attention` for few scores, and for heads that cuDNN does not take.

    Temporal attention has few scores (8 to 32 frames): a cuDNN kernel would compute a tile of 128 for them.
    """
    dim, scores = q.shape[-1], q.shape[2] * sum(k.shape[2] for k in keys)
    if scores < MIN_BLOCKWISE_SCORES or dim > MAX_CUDNN_HEAD_DIM or dim % 8:
        return blockwise_attention(q, keys, values)
    return _dot_product_attention(q, keys, values, "cudnn")


def xla_attention(q: Float[Array, "g f n h d"], keys: Parts, values: Parts) -> Float[Array, "g f n h d"]:
    """Attention in XLA, with all scores at once."""
    return _dot_product_attention(q, keys, values, "xla")


def _dot_product_attention(
    q: Float[Array, "g f n h d"], keys: Parts, values: Parts, implementation: str
) -> Float[Array, "g f n h d"]:
    parts = (q, concat_kv(keys, q.shape[1]), concat_kv(values, q.shape[1]))
    merged = (rearrange(t, "g f n h d -> (g f) n h d") for t in parts)
    return jax.nn.dot_product_attention(*merged, implementation=implementation).reshape(q.shape)  # pyright: ignore
