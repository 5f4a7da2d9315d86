"""AdamW with clipping and a learning-rate schedule; the defaults are those of the published motion stage."""

import jax
import jax.numpy as jnp
import optax

from fyp_jax.training.config import OptimizerConfig
from fyp_jax.types import Params


def learning_rate(config: OptimizerConfig, num_train_steps: int) -> optax.Schedule:
    """The learning rate of each update: it rises from 0 over `warmup_steps`, then stays, or follows half a
    cosine.

    The cosine reaches 0 at update `num_train_steps`.
    """
    if config.lr_schedule == "cosine":
        end = max(num_train_steps, config.warmup_steps + 1)
        return optax.warmup_cosine_decay_schedule(0.0, config.lr, config.warmup_steps, end)
    if config.warmup_steps == 0:  # optax's warm-up schedule would stay at 0
        return optax.constant_schedule(config.lr)
    return optax.warmup_constant_schedule(0.0, config.lr, config.warmup_steps)


def make_optimizer(config: OptimizerConfig, num_train_steps: int) -> optax.GradientTransformation:
    """Clipping to a global norm, then AdamW (Loshchilov and Hutter 2019) with weight decay on every array."""
    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm) if config.max_grad_norm else optax.identity(),
        optax.adamw(
            learning_rate(config, num_train_steps),
            b1=config.beta1,
            b2=config.beta2,
            eps=config.eps,
            weight_decay=config.weight_decay,
        ),
    )


def update_ema(ema_params: Params, params: Params, decay: float) -> Params:
    """Exponential moving average of parameters: decay * ema_params + (1 - decay) * params."""
    return jax.tree.map(lambda a, p: a + jnp.asarray(1 - decay, a.dtype) * (p - a), ema_params, params)
