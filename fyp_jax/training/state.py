"""What a training run holds on its devices: arrays, and nothing else."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from fyp_jax.parallel.mesh import parameter_specs, shardings

Arrays = dict[str, Float[Array, "..."]]
"""Parameters of all models by path: `unet/...`, `pose_encoder/...`, `vae/...`, `text_encoder/...`."""


class TrainState(NamedTuple):
    """Gradient and optimizer see `trainable` alone; `frozen` is no part of a checkpoint's training item."""

    step: Int[Array, ""]
    """Steps done; the number of the next one, as they count from 0."""
    trainable: Arrays
    """Float32."""
    frozen: Arrays
    opt_state: Any
    average: Arrays | None
    """Moving average of `trainable`, or None for a run without one."""
    skipped: Int[Array, ""]
    """Steps without an update, as their gradient was not finite: in all ..."""
    skipped_in_row: Int[Array, ""]
    """... and since the last update."""

    def averaged(self) -> Arrays:
        """The trained parameters that sampling should use."""
        return self.trainable if self.average is None else self.average


def state_specs(state: TrainState, mesh: Mesh) -> TrainState:
    """Where each array (or its shape) of a state stands: by its size, whatever its role."""
    return parameter_specs(state, mesh)


def init_state(
    trainable: Arrays, frozen: Arrays, optimizer: optax.GradientTransformation, average: bool, mesh: Mesh
) -> TrainState:
    """Step 0 from parameters that are placed on the mesh; moments are made where they belong."""
    shapes = state_shapes(trainable, frozen, optimizer, average)._replace(trainable={}, frozen={})
    placed = shardings(parameter_specs(shapes, mesh), mesh)
    make = jax.jit(functools.partial(_rest, optimizer=optimizer, average=average), out_shardings=placed)
    rest = make(trainable)
    return rest._replace(trainable=trainable, frozen=frozen)


def state_shapes(
    trainable: Any, frozen: Any, optimizer: optax.GradientTransformation, average: bool
) -> TrainState:
    """Shapes of `init_state`, from parameters or their shapes."""
    rest = jax.eval_shape(functools.partial(_rest, optimizer=optimizer, average=average), trainable)
    return rest._replace(trainable=trainable, frozen=frozen)


def _rest(trainable: Arrays, optimizer: optax.GradientTransformation, average: bool) -> TrainState:
    """A state of step 0 but for its parameters."""
    copy = jax.tree.map(jnp.copy, trainable) if average else None
    step, skipped, in_row = (jnp.zeros((), jnp.int32) for _ in range(3))
    return TrainState(step, {}, {}, optimizer.init(trainable), copy, skipped, in_row)
