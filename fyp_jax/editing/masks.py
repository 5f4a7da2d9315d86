"""Masks from word maps: where in a frame the words of a prompt are, and the blending of latents by them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from fyp_jax.types import Latents

WordMap = Float[Array, "*n h w"]
"""The attention of the queries of each frame to some words: the mean over heads and layers."""


def word_mask(
    maps: Float[Array | np.ndarray, "*n h w"],
    height: int,
    width: int,
    threshold: float | Float[Array, ""],
    pool: bool = True,
) -> Bool[Array, "*n {height} {width}"]:
    """Where the maps are more than `threshold` times the maximum of their frame.

    `pool` takes the maximum over 3 x 3 pixels first. The size is changed to the nearest pixel as PyTorch does
    it, i -> floor(i * from / to), before the frame's maximum is taken.
    """
    maps = jnp.asarray(maps)
    if pool:
        ones = (1,) * (maps.ndim - 2)
        lowest = jnp.asarray(-jnp.inf, maps.dtype)
        maps = jax.lax.reduce_window(maps, lowest, jax.lax.max, (*ones, 3, 3), (1,) * maps.ndim, "SAME")
    rows, columns = (
        np.arange(to) * size // to for to, size in zip((height, width), maps.shape[-2:], strict=True)
    )
    maps = maps[..., rows[:, None], columns]
    return jnp.greater(maps / maps.max(axis=(-2, -1), keepdims=True), threshold)


def blend_latents(
    z: Latents,
    background: Float[Array, "#b f h w c"],
    mask: Bool[Array, "#b #f h w"] | Float[Array, "#b #f h w"],
) -> Latents:
    """`z` inside of the mask, the background's latents outside of it."""
    return jnp.where(mask[..., None] > 0, z, background)


class Blend(NamedTuple):
    """How one step mixes other latents into the edited ones."""

    active: Bool[Array, ""]
    """Whether this step mixes at all."""
    threshold: Float[Array, ""]
    background: Float[Array, "1 f h w c"] | None = None
    """The latents outside of the mask; None: those of the source's row."""
    source_map: Float[Array, "f _ _"] | None = None
    """The source's word map; None: what the steps so far read off in the source's row."""
