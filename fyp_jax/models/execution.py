"""How a network is computed, as opposed to what it is (`UNet3DConfig`): precision, memory, frames apart."""

import dataclasses
from typing import TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

Block = TypeVar("Block", bound=type[nn.Module])

REMAT = {"none": (), "transformers": ("Transformer",), "all": ("Transformer", "ResnetBlock")}
"""Blocks of which a gradient keeps the input alone, and computes what is inside again."""


@dataclasses.dataclass(frozen=True)
class ExecutionConfig:
    """Has no influence on names and shapes of parameters."""

    dtype: DTypeLike = jnp.float32
    """Of activations; parameters are cast to it where they are used."""
    remat: str = "none"
    """One of REMAT."""
    frame_axis: str | None = None
    """Axis of a `shard_map` or `vmap` over which the frames of each clip are spread, in their order; None
    where all of them are here."""

    def rematerialised(self, block: Block) -> Block:
        """The same block, with `remat` applied."""
        return nn.remat(block) if block.__name__ in REMAT[self.remat] else block  # pyright: ignore


DEFAULT = ExecutionConfig()
"""Float32, everything kept, all frames here."""


def sparse_causal_kv(
    tokens: Float[Array, "b f n c"], axis: str | None = None
) -> tuple[Float[Array, "b 1 n c"], Float[Array, "b f n c"]]:
    """Tokens of frame 0 of each clip, and for each frame those of the one before it (for frame 0 its own)."""
    first = before = tokens[:, :1]
    if axis is not None:
        index, size = jax.lax.axis_index(axis), jax.lax.axis_size(axis)
        first = jax.lax.psum(jnp.where(index == 0, first, 0), axis)
        from_left = jax.lax.ppermute(tokens[:, -1:], axis, [(i, (i + 1) % size) for i in range(size)])
        before = jnp.where(index == 0, first, from_left)
    return first, jnp.concatenate([before, tokens[:, :-1]], axis=1)


def frames_to_tokens_all_to_all(x: Float[Array, "b f n c"], axis: str | None) -> Float[Array, "b g m c"]:
    """All frames of some tokens, where there were all tokens of some frames; zeros fill up the last share."""
    if axis is None:
        return x
    x = jnp.pad(x, ((0, 0), (0, 0), (0, -x.shape[2] % jax.lax.axis_size(axis)), (0, 0)))
    return jax.lax.all_to_all(x, axis, split_axis=2, concat_axis=1, tiled=True)


def tokens_to_frames_all_to_all(
    x: Float[Array, "b g m c"], axis: str | None, tokens: int
) -> Float[Array, "b f {tokens} c"]:
    """The way back from `frames_to_tokens_all_to_all`."""
    if axis is None:
        return x
    return jax.lax.all_to_all(x, axis, split_axis=1, concat_axis=2, tiled=True)[:, :, :tokens]
