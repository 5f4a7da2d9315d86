"""Random weights for a model that only its shapes are known of: for a first look, and for profiles."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fyp_jax import trees


def random_params(shapes: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Float32 parameters of variance 1 / fan-in, normalisations that do nothing, biases of 0.

    Unlike a model's own initialisation nothing starts at 0, so that every input reaches the output; and
    drawing a billion numbers takes seconds, where compiling their initialisers takes a minute.
    """
    rng = np.random.default_rng(seed)
    flat = {path: _draw(path, tuple(leaf.shape), rng) for path, leaf in sorted(trees.flatten(shapes).items())}
    return trees.unflatten(flat)


def _draw(path: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    kind = path.rpartition("/")[2]
    if kind in {"bias", "scale"}:
        return np.full(shape, float(kind == "scale"), np.float32)
    fan_in = shape[-1] if kind == "embedding" else math.prod(shape[:-1])
    return rng.standard_normal(shape, np.float32) / np.float32(math.sqrt(fan_in))
