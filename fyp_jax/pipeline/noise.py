"""The latents from which sampling starts."""

import jax

from fyp_jax.diffusion.schedule import correlated_noise
from fyp_jax.types import Latents


def prepare_latents(
    key: jax.Array, shape: tuple[int, int, int, int, int], noise_correlation: float
) -> Latents:
    """Standard normal noise [b f h w c]; frames of a clip have `noise_correlation` of its variance in
    common."""
    own = jax.random.normal(key, shape)
    if not noise_correlation:
        return own
    common = jax.random.normal(jax.random.fold_in(key, 1), (shape[0], 1, *shape[2:]))
    return correlated_noise(common, own, noise_correlation)
