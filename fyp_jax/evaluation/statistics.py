"""Bootstrap confidence intervals of means over clips and of paired differences, PSNR, and the similarity of
consecutive frames."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


def consecutive_cosine(features: Float[np.ndarray, "f *d"]) -> float:
    """Mean cosine similarity of the features (VAE latents, CLIP embeddings) of consecutive frames."""
    flat = features.reshape(len(features), -1).astype(np.float64)
    unit = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    return float(np.mean(np.sum(unit[1:] * unit[:-1], axis=1)))


def psnr(squared: Float[np.ndarray, "*d"]) -> float:
    """Peak signal-to-noise ratio in dB, from squared errors of values in 0..255; without any error 148 dB, so
    that it has a mean over clips."""
    return float(10 * np.log10(255**2 / max(squared.mean(), 1e-10)))


class ConfidenceInterval(NamedTuple):
    """A mean over clips, and the 2.5th and 97.5th percentile of the means of resampled clips."""

    mean: float
    low: float
    high: float


def bootstrap_ci(values: Sequence[float], seed: int = 0, num_resamples: int = 2000) -> ConfidenceInterval:
    """The bootstrap interval (Efron 1979) of a mean. Equal values and seeds give equal intervals."""
    array = np.asarray(values, np.float64)
    indices = np.random.default_rng(seed).integers(len(array), size=(num_resamples, len(array)))
    low, high = np.percentile(array[indices].mean(axis=1), [2.5, 97.5])
    return ConfidenceInterval(float(array.mean()), float(low), float(high))


def paired_difference(
    values: Sequence[float | None], baseline: Sequence[float | None]
) -> ConfidenceInterval | None:
    """The mean of `values` minus `baseline` over the clips that have both, with its interval; None where no
    clip has both.

    The differences are taken clip by clip, so that it does not count how much one clip differs from the next.
    Raises ValueError for sequences of unequal lengths.
    """
    pairs = zip(values, baseline, strict=True)
    differences = [a - b for a, b in pairs if a is not None and b is not None]
    return bootstrap_ci(differences) if differences else None
