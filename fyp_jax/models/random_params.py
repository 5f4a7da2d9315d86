"""Random weights for a model from the shapes of its parameters: for trying it out, and for profiling."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict


def random_params(shapes: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Float32 parameters: kernels and embeddings of variance 1 / fan-in, scales of 1, biases of 0.

    No kernel is 0, unlike in a model's own initialisation, so every input has an effect on the output.
    Sampling a billion numbers on the host takes seconds; compiling a model's initialisers takes a minute.
    """
    rng = np.random.default_rng(seed)
    flat = sorted(flatten_dict(shapes, sep="/").items())
    return unflatten_dict({path: _random_leaf(path, tuple(leaf.shape), rng) for path, leaf in flat}, sep="/")


def _random_leaf(path: str, shape: tuple[int, ...], rng: np.random.Generator) -> jax.Array:
    kind = path.rpartition("/")[2]
    if kind in {"bias", "scale"}:
        return jnp.full(shape, float(kind == "scale"), jnp.float32)
    fan_in = shape[-1] if kind == "embedding" else math.prod(shape[:-1])
    return jnp.asarray(rng.standard_normal(shape, np.float32)) / math.sqrt(fan_in)
