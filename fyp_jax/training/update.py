"""The update: gradients and a state become the next state. It knows neither the loss nor the mesh."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from fyp_jax.training.optimizer import update_ema
from fyp_jax.training.state import Arrays, TrainState


def apply_gradients(
    state: TrainState,
    gradients: Arrays,
    optimizer: optax.GradientTransformation,
    lr_schedule: optax.Schedule,
    ema_decay: float | None,
) -> tuple[TrainState, dict[str, Any]]:
    """The next state, and metrics: `grad_norm` (before clipping), `param_norm` (trainable), `lr`, `skipped`,
    `skipped_in_row`.

    A step whose gradient is not finite changes no parameter and no optimizer state, and is counted.
    """
    norm = optax.tree.norm(gradients)
    finite = jnp.isfinite(norm)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.trainable)
    trainable = optax.apply_updates(state.trainable, updates)
    ema_params = state.ema_params
    if ema_params is not None and ema_decay is not None:
        ema_params = update_ema(ema_params, trainable, ema_decay)  # pyright: ignore[reportArgumentType]

    def if_finite(new: Any, old: Any) -> Any:
        return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

    skipped = jnp.where(finite, 0, 1)
    after = TrainState(
        step=state.step + 1,
        trainable=if_finite(trainable, state.trainable),
        frozen=state.frozen,
        opt_state=if_finite(opt_state, state.opt_state),
        ema_params=if_finite(ema_params, state.ema_params),
        skipped=state.skipped + skipped,
        skipped_in_row=jnp.where(finite, 0, state.skipped_in_row + 1),
    )
    metrics = {
        "grad_norm": norm,
        "param_norm": optax.tree.norm(after.trainable),
        "lr": jnp.asarray(lr_schedule(state.step - state.skipped)),
        "skipped": after.skipped,
        "skipped_in_row": after.skipped_in_row,
    }
    return after, metrics
