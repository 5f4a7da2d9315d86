"""Attention by `jax.nn.dot_product_attention`: in cuDNN on NVIDIA GPUs, or in XLA."""

import functools

import jax
from einops import rearrange
from jaxtyping import Array, Float

from fyp_jax.models.attention_functions import MIN_BLOCKWISE_SCORES, Parts, concat_kv

MAX_CUDNN_HEAD_DIM = 128
"""cuDNN's flash attention takes heads up to this width on all GPUs that it runs on, in steps of 8."""

MAX_XLA_SCORES = 2**28
"""Scores of all heads that XLA computes at a time: 1 GiB in float32."""


def cudnn_attention(q: Float[Array, "g f n h d"], keys: Parts, values: Parts) -> Float[Array, "g f n h d"]:
    """Attention in cuDNN; `xla_attention` for few scores, and for shapes that cuDNN does not take.

    Temporal attention has few scores (8 to 32 frames): a cuDNN kernel would compute a tile of 128 for them.
    An odd number of tokens, as the 77 of a text, has no gradient in cuDNN.
    """
    dim, tokens, read = q.shape[-1], q.shape[2], sum(k.shape[2] for k in keys)
    is_odd = bool(tokens % 2 or read % 2)
    if is_odd or tokens * read < MIN_BLOCKWISE_SCORES or dim > MAX_CUDNN_HEAD_DIM or dim % 8:
        return xla_attention(q, keys, values)
    attend = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    return attend(*_merged(q, keys, values)).reshape(q.shape)


def xla_attention(q: Float[Array, "g f n h d"], keys: Parts, values: Parts) -> Float[Array, "g f n h d"]:
    """Attention in XLA, with all scores of as many frames at once as MAX_XLA_SCORES allows.

    Where that is not all of the frames, a gradient rematerialises the scores.
    """
    merged = _merged(q, keys, values)
    scores_of_a_frame = q.shape[2] * q.shape[3] * merged[1].shape[1]
    frames_at_once = max(1, MAX_XLA_SCORES // scores_of_a_frame)
    attend = functools.partial(jax.nn.dot_product_attention, implementation="xla")
    if frames_at_once >= len(merged[0]):
        return attend(*merged).reshape(q.shape)
    one_frame = jax.checkpoint(lambda frame: attend(*frame), prevent_cse=False)
    return jax.lax.map(one_frame, merged, batch_size=frames_at_once).reshape(q.shape)


def _merged(q: Float[Array, "g f n h d"], keys: Parts, values: Parts) -> tuple[jax.Array, ...]:
    """Queries, keys and values of each frame, [(g f) n h d]."""
    parts = (q, concat_kv(keys, q.shape[1]), concat_kv(values, q.shape[1]))
    return tuple(rearrange(t, "g f n h d -> (g f) n h d") for t in parts)
