"""Attention over few tokens on a TPU, such as along time: sums of products without the matrix unit."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from fyp_jax.models.attention_functions import Parts, blockwise_attention, concat_kv

MAX_SCORES = 32 * 32
"""Up to so many scores of one head (queries times keys), tokens are few."""


def tpu_attention(q: Float[Array, "g f n h d"], keys: Parts, values: Parts) -> Float[Array, "g f n h d"]:
    """`few_token_attention` where queries and keys are few, and `blockwise_attention` elsewhere."""
    few = q.shape[2] * sum(k.shape[2] for k in keys) <= MAX_SCORES
    return (few_token_attention if few else blockwise_attention)(q, keys, values)


def few_token_attention(
    q: Float[Array, "g f n h d"], keys: Parts, values: Parts
) -> Float[Array, "g f n h d"]:
    """softmax(q [k_1 k_2 ...]^T / sqrt(d)) [v_1 v_2 ...] in float32, element by element.

    As matrix products of 8 x 40 x 8 numbers, scores take a tile of 8 x 128 for each head of each position.
    Here XLA puts positions (g) into the lanes, so that nothing is padded, and nothing is laid out anew.
    """
    parts = q, concat_kv(keys, q.shape[1]), concat_kv(values, q.shape[1])
    q32, k, v = (t.astype(jnp.float32) for t in parts)
    scores = jnp.sum(q32[:, :, :, None] * k[:, :, None], axis=-1) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(scores, axis=3)
    return jnp.sum(weights[..., None] * v[:, :, None], axis=3).astype(q.dtype)
