"""Clips that a run samples during training."""

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh

from fyp_jax.media.images import image_grid
from fyp_jax.models.execution import ExecutionConfig
from fyp_jax.models.pose_encoder import PoseEncoder
from fyp_jax.models.unet import UNet3D
from fyp_jax.parallel.mesh import replicate
from fyp_jax.pipeline.pipeline import FollowYourPosePipeline
from fyp_jax.pipeline.programs import SamplingPrograms
from fyp_jax.pose.loading import load_configured_pose
from fyp_jax.training.config import TrainConfig
from fyp_jax.training.logs import TrainingLog
from fyp_jax.training.losses import Models
from fyp_jax.training.state import TrainState


class Validation:
    """Samples the validation prompts of a config with a run's own models and weights."""

    def __init__(self, config: TrainConfig, models: Models, mesh: Mesh):
        """Raises UserError where the pose sequence cannot be read."""
        dtype, unet_config = jnp.dtype(config.dtype), models.unet.config
        execution = ExecutionConfig(dtype, attention=models.unet.execution.attention)
        unet, pose_encoder = UNet3D(unet_config, execution), PoseEncoder(unet_config, dtype)
        self._programs = SamplingPrograms(models.encoders, models.schedule, unet, pose_encoder)
        self._prompts, self._mesh = config.validation.prompt, mesh
        self._sampling = config.validation_sampling()
        size = self._sampling.num_frames, self._sampling.height, self._sampling.width
        self._poses = load_configured_pose(config.validation.pose, *size)

    def run(self, done: int, state: TrainState, training_log: TrainingLog) -> None:
        """Sample each prompt after `done` steps, on one device of the first process. All processes must call
        it."""
        flat = state.sampling_params() | state.frozen
        params = replicate(unflatten_dict(flat, sep="/"), self._mesh)
        if jax.process_index() != 0:
            return
        pipeline = FollowYourPosePipeline(self._programs, params, self._sampling)
        for number, prompt in enumerate(self._prompts):
            output = pipeline(prompt, self._poses)
            rows = [x for x in (output.pose_images, output.frames) if x is not None]
            training_log.images(done, f"{number:02d}", image_grid(rows))
