"""What a training run holds on its devices: arrays, and nothing else."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from fyp_jax import parallel

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
    return parallel.parameter_specs(state, mesh)


def init_state(
    trainable: Arrays, frozen: Arrays, optimizer: optax.GradientTransformation, average: bool, mesh: Mesh
) -> TrainState:
    """Step 0 from parameters that are placed on the mesh; moments are made where they belong."""

    def rest(trainable: Arrays) -> tuple[Any, Arrays | None, Any]:
        copy = jax.tree.map(jnp.copy, trainable) if average else None
        return optimizer.init(trainable), copy, (jnp.zeros((), jnp.int32),) * 3

    shapes = jax.eval_shape(rest, trainable)
    shardings = parallel.shardings(parallel.parameter_specs(shapes, mesh), mesh)
    opt_state, copy, (step, skipped, in_row) = jax.jit(rest, out_shardings=shardings)(trainable)
    return TrainState(step, trainable, frozen, opt_state, copy, skipped, in_row)
