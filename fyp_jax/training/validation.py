"""Clips sampled in the course of training, to be looked at."""

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh

from fyp_jax.media.images import image_grid
from fyp_jax.models.execution import ExecutionConfig
from fyp_jax.models.pose_encoder import PoseEncoder
from fyp_jax.models.unet import UNet3D
from fyp_jax.parallel.mesh import replicate
from fyp_jax.pipeline.pipeline import FollowYourPosePipeline
from fyp_jax.pose.loading import configured_pose
from fyp_jax.training.config import TrainConfig
from fyp_jax.training.logs import TrainingLog
from fyp_jax.training.losses import Models
from fyp_jax.training.state import TrainState


class Validation:
    """The sampler of a run's own models; poses are those of `validation.pose`, or none."""

    def __init__(self, config: TrainConfig, models: Models, mesh: Mesh):
        """Raises UserError where the pose clip cannot be read."""
        dtype, sizes = jnp.dtype(config.dtype), models.unet.config
        unet, pose_encoder = UNet3D(sizes, ExecutionConfig(dtype)), PoseEncoder(sizes, dtype)
        self._sampler = FollowYourPosePipeline(models.frozen, models.schedule, unet, pose_encoder)
        self._config, self._mesh = config, mesh
        self._poses = configured_pose(config.validation.pose, config.data.height, config.data.width)

    def look(self, done: int, state: TrainState, training_log: TrainingLog) -> None:
        """Sample each prompt behind step `done`, on one device of the first process; all have to call."""
        params = replicate(unflatten_dict(state.averaged() | state.frozen, sep="/"), self._mesh)
        if jax.process_index() != 0:
            return
        config, chosen = self._config.validation, self._config.data
        for number, prompt in enumerate(config.prompt):
            video = self._sampler(
                params,
                prompt,
                self._poses,
                size=None if self._poses is not None else (config.pose.frames, chosen.height, chosen.width),
                seed=config.seed,
                steps=config.steps,
                guidance=config.guidance,
            )
            poses = [] if self._poses is None else [np.round(self._poses * 255).astype(np.uint8)]
            training_log.pictures(done, f"{number:02d}", image_grid([*poses, video]))
