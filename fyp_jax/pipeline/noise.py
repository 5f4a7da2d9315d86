"""The latents from which sampling starts."""

import jax

from fyp_jax.diffusion.schedule import correlated_noise
from fyp_jax.pipeline.windows import shuffled_frames
from fyp_jax.types import Latents


def prepare_latents(
    key: jax.Array,
    shape: tuple[int, int, int, int, int],
    noise_correlation: float,
    window: int | None = None,
) -> Latents:
    """Standard normal noise [b f h w c]; frames of a clip have `noise_correlation` of its variance in
    common.

    A clip of more than `window` frames has the noise of its first `window` frames again and again, in
    changing order (`shuffled_frames`); None is a clip whose frames all have noise of their own.
    """
    batch, frames, *size = shape
    drawn = frames if window is None else min(frames, window)
    own = jax.random.normal(key, (batch, drawn, *size))
    if drawn < frames:
        own = own[:, shuffled_frames(jax.random.fold_in(key, 2), frames, drawn)]
    if not noise_correlation:
        return own
    common = jax.random.normal(jax.random.fold_in(key, 1), (batch, 1, *size))
    return correlated_noise(common, own, noise_correlation)
