"""AdamW or Muon, with clipping and a learning-rate schedule; the defaults are those of the published motion
stage."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from fyp_jax.training.config import OptimizerConfig
from fyp_jax.types import Params

ADAM_RMS = 0.2
"""Root mean square of AdamW's usual updates, before the learning rate."""


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
    """Clipping to a global norm, then AdamW (Loshchilov and Hutter 2019) with weight decay on every array, or
    Muon (`_muon`)."""
    make = {"adamw": _adamw, "muon": _muon}[config.name]
    return optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm) if config.max_grad_norm else optax.identity(),
        make(config, learning_rate(config, num_train_steps)),
    )


def _adamw(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(
        rate, b1=config.beta1, b2=config.beta2, eps=config.eps, weight_decay=config.weight_decay
    )


def _muon(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """Muon (Jordan et al. 2024) for kernels of layers, AdamW for all other arrays, both with weight decay.

    The kernel of a convolution is the matrix from its window's pixels and channels to the output channels.
    Updates are scaled to the size that AdamW's usually have (Liu et al. 2025, section 2.2), so that one
    learning rate does for both.
    """
    kernels = optax.contrib.muon(
        rate,
        eps=config.eps,
        weight_decay=config.weight_decay,
        muon_weight_dimension_numbers=_kernel_matrices,
        consistent_rms=ADAM_RMS,
    )
    return optax.partition({True: kernels, False: _adamw(config, rate)}, _are_kernels)


def _are_kernels(params: Params) -> Any:
    def is_kernel(path: jax.tree_util.KeyPath, x: jax.Array) -> bool:
        return "kernel" in jax.tree_util.keystr(path[-1:]) and x.ndim > 1

    return jax.tree_util.tree_map_with_path(is_kernel, params)


def _kernel_matrices(kernels: Any) -> Any:
    """Which axes of each kernel are the rows of its matrix, and which the columns."""

    def matrix(kernel: jax.Array) -> optax.contrib.MuonDimensionNumbers:
        *inputs, output = range(kernel.ndim)
        return optax.contrib.MuonDimensionNumbers(tuple(inputs), (output,))

    return jax.tree.map(matrix, kernels)


def update_ema(ema_params: Params, params: Params, decay: float) -> Params:
    """Exponential moving average of parameters: decay * ema_params + (1 - decay) * params."""
    return jax.tree.map(lambda a, p: a + jnp.asarray(1 - decay, a.dtype) * (p - a), ema_params, params)
