"""How a network is executed, as opposed to what it is (`UNet3DConfig`): precision, memory, forms of layers,
frames on a mesh."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from fyp_jax.models.layer_forms import DEFAULT_FORMS, LayerForms

Block = TypeVar("Block", bound=type[nn.Module])

AttentionHook = Callable[
    [str, Array, Sequence[Array], Sequence[Array]], tuple[Array, Sequence[Array], Sequence[Array]]
]
"""(path of the layer, queries, keys, values) -> the queries, keys and values that attention takes in their
place."""

REMAT = {"none": (), "transformers": ("Transformer",), "all": ("Transformer", "ResnetBlock")}
"""Blocks that a gradient rematerialises: it keeps a block's input, and computes what is inside a second
time."""


@dataclasses.dataclass(frozen=True)
class ExecutionConfig:
    """Options that change neither names nor shapes of parameters."""

    dtype: DTypeLike = jnp.float32
    """Dtype of activations; parameters are cast to it where they are used."""
    remat: str = "none"
    """One of REMAT."""
    frame_axis: str | None = None
    """Axis of a `shard_map` or `vmap` over which the frames of each clip are divided, in their order; None
    where all frames are on this device."""
    forms: LayerForms = DEFAULT_FORMS
    """How attention and convolutions are computed."""
    attention_hook: AttentionHook | None = None
    """A function that sees, and may replace, what each attention layer reads; None traces to the program
    without it."""

    def rematerialised(self, block: Block) -> Block:
        """The same block, with `remat` applied."""
        return nn.remat(block) if block.__name__ in REMAT[self.remat] else block  # pyright: ignore


DEFAULT = ExecutionConfig()
"""Float32, nothing rematerialised, all frames on one device."""


def sparse_causal_kv(
    tokens: Float[Array, "b f n c"], axis: str | None = None
) -> tuple[Float[Array, "b 1 n c"], Float[Array, "b f n c"]]:
    """Tokens of each clip's frame 0, and for each frame those of the frame before it (for frame 0 its
    own)."""
    first = before = tokens[:, :1]
    if axis is not None:
        index, size = jax.lax.axis_index(axis), jax.lax.axis_size(axis)
        first = jax.lax.psum(jnp.where(index == 0, first, 0), axis)
        from_left = jax.lax.ppermute(tokens[:, -1:], axis, [(i, (i + 1) % size) for i in range(size)])
        before = jnp.where(index == 0, first, from_left)
    return first, jnp.concatenate([before, tokens[:, :-1]], axis=1)


def frames_to_tokens_all_to_all(x: Float[Array, "b f n c"], axis: str | None) -> Float[Array, "b g m c"]:
    """All tokens of some frames -> all frames of some tokens; zeros fill up the last device's tokens."""
    if axis is None:
        return x
    x = jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % jax.lax.axis_size(axis)), (0, 0)))
    return jax.lax.all_to_all(x, axis, split_axis=2, concat_axis=1, tiled=True)


def tokens_to_frames_all_to_all(
    x: Float[Array, "b g m c"], axis: str | None, tokens: int
) -> Float[Array, "b f {tokens} c"]:
    """The inverse of `frames_to_tokens_all_to_all`, for so many tokens."""
    if axis is None:
        return x
    return jax.lax.all_to_all(x, axis, split_axis=1, concat_axis=2, tiled=True)[:, :, :tokens]
