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
    """The arrays of a run. Gradient and optimizer see `trainable` alone; a checkpoint's train item has no
    `frozen`."""

    step: Int[Array, ""]
    """Number of steps done, which is the index of the next step."""
    trainable: Arrays
    """Parameters that are trained, float32."""
    frozen: Arrays
    """Parameters that are not trained."""
    opt_state: Any
    ema_params: Arrays | None
    """Exponential moving average of `trainable`, or None for a run without one."""
    skipped: Int[Array, ""]
    """Number of steps that changed nothing, as their gradient was not finite."""
    skipped_in_row: Int[Array, ""]
    """Number of such steps since the last update."""

    def sampling_params(self) -> Arrays:
        """The trained parameters that sampling uses: the moving average where there is one."""
        return self.trainable if self.ema_params is None else self.ema_params


def state_specs(state: TrainState, mesh: Mesh) -> TrainState:
    """Partition specs of each array (or its shape) of a state: they depend on its size, whatever its role."""
    return parameter_specs(state, mesh)


def init_state(
    trainable: Arrays,
    frozen: Arrays,
    optimizer: optax.GradientTransformation,
    use_ema: bool,
    mesh: Mesh,
) -> TrainState:
    """The state of step 0, from parameters that are on the mesh; optimizer state is made in its shardings."""
    shapes = state_shapes(trainable, frozen, optimizer, use_ema)._replace(trainable={}, frozen={})
    out_shardings = shardings(parameter_specs(shapes, mesh), mesh)
    make = jax.jit(
        functools.partial(_without_params, optimizer=optimizer, use_ema=use_ema), out_shardings=out_shardings
    )
    return make(trainable)._replace(trainable=trainable, frozen=frozen)


def state_shapes(
    trainable: Any, frozen: Any, optimizer: optax.GradientTransformation, use_ema: bool
) -> TrainState:
    """Shapes of the arrays of `init_state`, from parameters or their shapes."""
    rest = jax.eval_shape(functools.partial(_without_params, optimizer=optimizer, use_ema=use_ema), trainable)
    return rest._replace(trainable=trainable, frozen=frozen)


def _without_params(trainable: Arrays, optimizer: optax.GradientTransformation, use_ema: bool) -> TrainState:
    """A state of step 0 without its parameters."""
    copy = jax.tree.map(jnp.copy, trainable) if use_ema else None
    step, skipped, in_row = (jnp.zeros((), jnp.int32) for _ in range(3))
    return TrainState(step, {}, {}, optimizer.init(trainable), copy, skipped, in_row)
