"""Edits of attention as data: rows of a batch that read what another row of the batch attends to.

Published editors store attention maps and replace them. The output of attention is linear in its values, so
that no map is needed: a map P_s of a source row, used on a target's values, is attention with the source's
queries and keys and the target's values. An edit therefore adds rows to a layer's attention, and the layer
calls the same `AttentionFn` once.

The last 1 + k rows of the batch are the source and its k targets, in this order. Other rows are not touched.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float

from fyp_jax.errors import UserError

WORDS = "words"
"""The Flax collection in which layers leave their word maps: `apply(..., mutable=[WORDS])`."""


class AttentionEdit(NamedTuple):
    """The edit of the layers of one level, at one step. What is None is not touched, and costs nothing."""

    source_weights: Float[Array, "k l l"] | None = None
    """A of the text edit P' = P_source A + P_target diag(b) (prompt-to-prompt, section 3): rows are tokens of
    the source, columns tokens of the target."""
    own_weights: Float[Array, "k l"] | None = None
    """b of the same formula; given together with A."""
    own: Bool[Array, "k f _"] | None = None
    """For each frame and query (or for all queries of a frame) whether a target keeps its own attention
    within and across frames; elsewhere it attends as the source does."""
    words: Float[Array, "r l m"] | None = None
    """Weights of tokens, of which layers leave maps: m sets of words for the source and its targets."""
    source_words: Float[Array, "k l m"] | None = None
    """Weights of the source's map in the maps of the targets; with A and b, they make maps of the *edited*
    attention. None: a target's map is that of its own attention."""


LevelEdits = Mapping[int, AttentionEdit]
"""Edits by level of the UNet: 0 has the side of the latents, 1 half of it, ... An absent level is not
touched."""


class Rows(NamedTuple):
    """Projected queries, keys and values of a batch of rows, before they are split into heads."""

    q: Array
    keys: Sequence[Array]
    values: Sequence[Array]


def add_text_rows(
    edit: AttentionEdit, q: Float[Array, "b 1 n c"], key: Float[Array, "b 1 l c"], value: Array, heads: int
) -> Rows:
    """Rows of attention to the text, and behind them the rows that `split_text_rows` needs."""
    queries, keys, values = [q], [key], [value]

    def add(rows: slice, weighted: Array, copies: int = 1) -> None:
        for parts, x in ((queries, q[rows]), (keys, key[rows])):
            parts.append(jnp.concatenate([x] * copies))
        values.append(weighted.astype(value.dtype)[:, None])

    if edit.source_weights is not None and edit.own_weights is not None:
        targets = len(edit.source_weights)
        of_targets = value[-targets:, 0]
        own = edit.own_weights.astype(value.dtype)[:, :, None] * of_targets
        values[0] = jnp.concatenate([value[:-targets], own[:, None]])
        weights = edit.source_weights.astype(value.dtype)
        add(_source(targets), jnp.einsum("kij,kjc->kic", weights, of_targets), copies=targets)
    if edit.words is not None:
        for chunk in _channels(edit.words, value.shape[-1], heads):
            add(slice(-len(edit.words), None), chunk)
    if edit.source_words is not None:
        for chunk in _channels(edit.source_words, value.shape[-1], heads):
            add(_source(len(chunk)), chunk, copies=len(chunk))
    return Rows(jnp.concatenate(queries), [jnp.concatenate(keys)], [jnp.concatenate(values)])


def split_text_rows(
    edit: AttentionEdit, out: Float[Array, "rows 1 n c"], heads: int
) -> tuple[Float[Array, "b 1 n c"], Float[Array, "r n m"] | None]:
    """The attention of the batch, edited, and its word maps (means over heads, float32), if any were asked
    for."""
    maps = None
    if edit.source_words is not None:
        out, from_source = _pop_maps(out, edit.source_words, heads)
    if edit.words is not None:
        out, maps = _pop_maps(out, edit.words, heads)
        if edit.source_words is not None:
            targets = len(edit.source_words)
            maps = jnp.concatenate([maps[:-targets], maps[-targets:] + from_source])
    if edit.source_weights is not None:
        targets = len(edit.source_weights)
        batch, from_source = out[:-targets], out[-targets:]
        out = jnp.concatenate([batch[:-targets], batch[-targets:] + from_source])
    return out, maps


def add_frame_rows(own: Bool[Array, "k f _"], rows: Rows) -> Rows:
    """Rows of attention across frames, and behind them the targets' values, read as the source reads its
    own."""
    targets = len(own)

    def add(x: Array, chosen: slice, copies: int) -> Array:
        return jnp.concatenate([x, *[x[chosen]] * copies])

    source, keys = _source(targets), [add(key, _source(targets), targets) for key in rows.keys]
    values = [add(value, slice(-targets, None), 1) for value in rows.values]
    return Rows(add(rows.q, source, targets), keys, values)


def split_frame_rows(own: Bool[Array, "k f _"], out: Float[Array, "rows f n c"]) -> Float[Array, "b f n c"]:
    """The attention of the batch; a target's is its own where `own` says so, and else the source's."""
    targets = len(own)
    batch, as_source = out[:-targets], out[-targets:]
    return jnp.concatenate([batch[:-targets], jnp.where(own[..., None], batch[-targets:], as_source)])


def word_maps(words: Mapping, frames: int, height: int, width: int) -> Float[Array, "r f h w m"]:
    """The word maps that the layers of one level left in the collection `WORDS`: their mean.

    Raises UserError where no layer left any, so that an edit that reaches no layer is noticed.
    """
    left = jax.tree.leaves(words)
    if not left:
        raise UserError(
            "this model has no attention to text at the level of the maps: give another map_level"
        )
    mean = jnp.asarray(sum(left) / len(left))
    return rearrange(mean, "r (f h w) m -> r f h w m", f=frames, h=height, w=width)


def _source(targets: int) -> slice:
    return slice(-targets - 1, -targets)


def _channels(words: Float[Array, "r l m"], width: int, heads: int) -> list[Float[Array, "r l c"]]:
    """Values that make attention read off sums of the map: a word a channel, the same for each head."""
    size = width // heads
    padded = jnp.pad(words, ((0, 0), (0, 0), (0, -words.shape[-1] % size)))
    return [jnp.tile(chunk, heads) for chunk in jnp.split(padded, padded.shape[-1] // size, axis=-1)]


def _pop_maps(
    out: Float[Array, "rows 1 n c"], words: Float[Array, "r l m"], heads: int
) -> tuple[Float[Array, "_ 1 n c"], Float[Array, "r n m"]]:
    """The rows without the last ones, which are those of `_channels`, and what was read off."""
    chunks = -(-words.shape[-1] // (out.shape[-1] // heads))
    rest, read = out[: len(out) - chunks * len(words)], out[len(out) - chunks * len(words) :]
    by_head = rearrange(read, "(m r) 1 n (h d) -> r n (m d) h", m=chunks, h=heads)
    return rest, by_head.astype(jnp.float32).mean(axis=-1)[..., : words.shape[-1]]
