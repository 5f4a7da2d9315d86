"""AdamW with clipping and a learning rate over time; what the published model was trained with by default."""

import jax
import jax.numpy as jnp
import optax

from fyp_jax.training.config import OptimizerConfig
from fyp_jax.types import Params


def learning_rate(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Update number -> learning rate: linear from 0 over `warmup` updates, then constant or half a cosine.

    The cosine reaches 0 at update `steps`.
    """
    if config.schedule == "cosine":
        end = max(steps, config.warmup + 1)
        return optax.warmup_cosine_decay_schedule(0.0, config.lr, config.warmup, end)
    if config.warmup == 0:  # where optax would stay at 0
        return optax.constant_schedule(config.lr)
    return optax.warmup_constant_schedule(0.0, config.lr, config.warmup)


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Clipping to a global norm, then AdamW (Loshchilov and Hutter 2019), decay on every array."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip) if config.clip else optax.identity(),
        optax.adamw(
            learning_rate(config, steps),
            b1=config.beta1,
            b2=config.beta2,
            eps=config.eps,
            weight_decay=config.weight_decay,
        ),
    )


def update_average(average: Params, params: Params, decay: float) -> Params:
    """Exponential moving average: decay * average + (1 - decay) * params."""
    return jax.tree.map(lambda a, p: a + jnp.asarray(1 - decay, a.dtype) * (p - a), average, params)
