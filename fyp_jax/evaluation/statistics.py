"""Means over clips with bootstrap intervals, and the consistency of consecutive frames."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float


def consecutive_cosine(features: Float[np.ndarray, "f *d"]) -> float:
    """Mean cosine of each frame's features (VAE latents, CLIP embeddings) and the next frame's."""
    flat = features.reshape(len(features), -1).astype(np.float64)
    unit = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    return float(np.mean(np.sum(unit[1:] * unit[:-1], axis=1)))


class ConfidenceInterval(NamedTuple):
    """A mean over clips, and the middle 95% of the means of clips that are resampled with replacement."""

    mean: float
    low: float
    high: float


def bootstrap_ci(values: Sequence[float], seed: int = 0, num_resamples: int = 2000) -> ConfidenceInterval:
    """The bootstrap (Efron 1979) over clips. The same values and seed give the same interval."""
    array = np.asarray(values, np.float64)
    chosen = np.random.default_rng(seed).integers(len(array), size=(num_resamples, len(array)))
    low, high = np.percentile(array[chosen].mean(axis=1), [2.5, 97.5])
    return ConfidenceInterval(float(array.mean()), float(low), float(high))
