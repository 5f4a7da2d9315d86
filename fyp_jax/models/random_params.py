"""Random weights for a model of which only the shapes are known: for a first look, and for profiles."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict


def random_params(shapes: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Float32 parameters of variance 1 / fan-in, normalisations that do nothing, biases of 0.

    Unlike a model's own initialisation nothing starts at 0, so that every input reaches the output; and
    drawing a billion numbers takes seconds, where compiling their initialisers takes a minute.
    """
    rng = np.random.default_rng(seed)
    flat = sorted(flatten_dict(shapes, sep="/").items())
    return unflatten_dict({path: _draw(path, tuple(leaf.shape), rng) for path, leaf in flat}, sep="/")


def _draw(path: str, shape: tuple[int, ...], rng: np.random.Generator) -> jax.Array:
    kind = path.rpartition("/")[2]
    if kind in {"bias", "scale"}:
        return jnp.full(shape, float(kind == "scale"), jnp.float32)
    fan_in = shape[-1] if kind == "embedding" else math.prod(shape[:-1])
    return jnp.asarray(rng.standard_normal(shape, np.float32)) / math.sqrt(fan_in)
