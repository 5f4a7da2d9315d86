"""What a run stores, found without weights: the size of a checkpoint and of cached latents."""

import dataclasses
import math
from typing import Any, NamedTuple

import jax

from fyp_jax.compilation_cache import Fingerprint
from fyp_jax.models.layer_forms import DEFAULT_FORMS
from fyp_jax.tpu.programs import bundled_sizes
from fyp_jax.tpu.run_plan import LatentBytes
from fyp_jax.training.config import MODELS, TrainConfig
from fyp_jax.training.init import initial_shapes
from fyp_jax.training.loop import mutable_state
from fyp_jax.training.optimizer import make_optimizer
from fyp_jax.training.stages import get_stage
from fyp_jax.training.state import state_shapes
from fyp_jax.training.step import step_fields

FLOAT16 = 2
"""Bytes of a number of cached latents, by default."""


class RunState(NamedTuple):
    """What a config says about a run before it starts."""

    fields: Fingerprint
    """What its compiled step depends on, besides the devices."""
    checkpoint_bytes: int
    """Bytes of the arrays of a checkpoint, which are compressed on disk."""
    latents: LatentBytes
    """Bytes of cached latents of this size."""


def run_state(config: TrainConfig) -> RunState:
    """Sizes of what a run stores. No weights are read. Raises UserError as a run would.

    A checkpoint has the trained parameters, the optimizer's state and the moving average, and beside them the
    weights for sampling: UNet, pose encoder, and the other models that the stage trains. A run that starts
    from a checkpoint with a VAE or a text encoder of its own saves these too, which is not counted.
    """
    config = dataclasses.replace(config, pretrained=bundled_sizes(config.pretrained)[0])
    stage = get_stage(config.stage)
    models, trainable, frozen = initial_shapes(config, stage, None, DEFAULT_FORMS)
    optimizer = make_optimizer(config.optimizer, config.num_train_steps)
    state = state_shapes(trainable, frozen, optimizer, config.optimizer.ema_decay is not None)
    saved = {*MODELS[:2], *(path.split("/")[0] for path in trainable)}
    params = {**trainable, **frozen}  # a moving average has the same shapes
    inference = [leaf for path, leaf in params.items() if path.split("/")[0] in saved]
    spec, (height, width) = models.encoders.spec, config.data.clip_size
    frame = 2 * FLOAT16 * (height // spec.downscale) * (width // spec.downscale) * spec.latent_channels
    caption = FLOAT16 * spec.tokens * spec.text_width
    return RunState(
        step_fields(config, models),
        tree_bytes(mutable_state(state)) + tree_bytes(inference),
        LatentBytes(frame, caption),
    )


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays of a tree, or of their shapes."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
