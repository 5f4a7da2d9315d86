"""One training step, for every stage and every mesh: state and batch become the next state and metrics.

It joins the gradient (`gradient.py`, of a loss in `losses.py`) and the update (`update.py`), and places both
on a mesh.
"""

from collections.abc import Callable

import jax
import optax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int

from fyp_jax.compilation_cache import Fingerprint, environment_fingerprint
from fyp_jax.config import config_lines
from fyp_jax.parallel.mesh import AXES, shardings
from fyp_jax.training.config import TrainConfig
from fyp_jax.training.gradient import AnyBatch, Metrics, batch_specs, sharded_gradient
from fyp_jax.training.losses import LossFn, Models, loss_of
from fyp_jax.training.optimizer import learning_rate, make_optimizer
from fyp_jax.training.stages import get_stage
from fyp_jax.training.state import TrainState, state_specs
from fyp_jax.training.update import apply_gradients

NOT_IN_A_STEP = (
    *(
        "pretrained",
        "init_checkpoint",
        "reinit",
        "random_init",
        "zero_init_temporal",
        "output_dir",
        "aot_path",
    ),
    *(
        "mesh.",
        "data.path",
        "data.video",
        "data.caption",
        "data.start",
        "data.stride",
        "data.pool_size",
        "data.workers",
        "data.max_corrupt_fraction",
        "data.caption_dropout",
    ),
    *("checkpoint.", "log.", "validation."),
)
"""Fields of a run's config, by their first letters, that a compiled step does not depend on."""

Step = Callable[[TrainState, AnyBatch, Int[Array, "devices"]], tuple[TrainState, Metrics]]


def make_step(
    models: Models,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    lr_schedule: optax.Schedule,
    mesh: Mesh,
    state: TrainState,
    *,
    seed: int,
    batch_size: int,
    grad_accumulation_steps: int = 1,
    ema_decay: float | None = None,
    donate: bool = True,
) -> Step:
    """The jitted step over a mesh; `state`, or its shapes, gives the shardings.

    The step takes a state, a global batch and a stop signal of each device. It gives the next state and the
    metrics of `sharded_gradient` (`loss`, `timestep_bin_loss` [4], `timestep_bin_clips` [4], and
    `stop_signal`, the largest of all) and of `apply_gradients`. A batch is computed in
    `grad_accumulation_steps` parts, one after the other. The state is donated; with `donate=False` both
    states are in memory.
    """
    specs = state_specs(state, mesh)
    gradient = sharded_gradient(models, loss_fn, mesh, specs, batch_size, grad_accumulation_steps)

    def step(
        state: TrainState, batch: AnyBatch, stop_signals: Int[Array, "devices"]
    ) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        gradients, metrics = gradient(state.trainable, state.frozen, batch, key, stop_signals)
        after, update_metrics = apply_gradients(state, gradients, optimizer, lr_schedule, ema_decay)
        return after, metrics | update_metrics

    state_shardings = shardings(specs, mesh)
    return jax.jit(
        step,
        in_shardings=(state_shardings, shardings(batch_specs(models), mesh), shardings(P(AXES), mesh)),
        out_shardings=(state_shardings, shardings(P(), mesh)),
        donate_argnums=(0,) if donate else (),
    )


def configured_step(
    config: TrainConfig, models: Models, mesh: Mesh, state: TrainState, donate: bool = True
) -> Step:
    """The step of a config, not yet compiled; `state`, or its shapes, gives the shardings."""
    return make_step(
        models,
        loss_of(get_stage(config.stage).loss, models),
        make_optimizer(config.optimizer, config.num_train_steps),
        learning_rate(config.optimizer, config.num_train_steps),
        mesh,
        state,
        seed=config.seed,
        batch_size=config.data.batch_size,
        grad_accumulation_steps=config.optimizer.grad_accumulation_steps,
        ema_decay=config.optimizer.ema_decay,
        donate=donate,
    )


def train_step_fingerprint(config: TrainConfig, models: Models, mesh: Mesh) -> Fingerprint:
    """All that a compiled step depends on: fields of the config, sizes of the models, mesh, versions."""
    return {
        **step_fields(config, models),
        "mesh": " ".join(f"{axis}={size}" for axis, size in mesh.shape.items()),
        **environment_fingerprint(list(mesh.devices.flatten())),
    }


def step_fields(config: TrainConfig, models: Models) -> Fingerprint:
    """Fields of a config, and sizes of its models, that a compiled step depends on, whatever the devices."""
    fields = dict(line.split("=", 1) for line in config_lines(config))
    fields = {key: value for key, value in fields.items() if not key.startswith(NOT_IN_A_STEP)}
    if config.optimizer.lr_schedule == "constant":
        del fields["num_train_steps"]
    return {
        **fields,
        "unet": str(models.unet.config.sizes()),
        **models.encoders.spec.sizes,
        "schedule": str(models.schedule),
    }
