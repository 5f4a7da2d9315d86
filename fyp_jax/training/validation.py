"""Clips that a run samples during training: from noise, or from an inversion of its one clip."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh
from jaxtyping import Float32

from fyp_jax.media.images import image_grid
from fyp_jax.models.execution import ExecutionConfig
from fyp_jax.models.pose_encoder import PoseEncoder
from fyp_jax.models.unet import UNet3D
from fyp_jax.parallel.mesh import replicate
from fyp_jax.pipeline.inversions import INVERSION_PROMPT, INVERSIONS, InvertedLatents, save_inversion
from fyp_jax.pipeline.output import Frames
from fyp_jax.pipeline.pipeline import FollowYourPosePipeline
from fyp_jax.pipeline.programs import SamplingPrograms
from fyp_jax.pose.loading import load_configured_pose
from fyp_jax.training.config import TrainConfig
from fyp_jax.training.logs import TrainingLog
from fyp_jax.training.losses import Models
from fyp_jax.training.state import TrainState


class Validation:
    """Samples the validation prompts of a config with a run's own models and weights."""

    def __init__(
        self,
        config: TrainConfig,
        models: Models,
        mesh: Mesh,
        trained_frames: int,
        clip: Frames | None = None,
    ):
        """Each prompt starts from an inversion of `clip` where it is given.

        `trained_frames` is the number of frames that the weights are trained on: the window of sampling, as
        sample.py will take it. Raises UserError where the pose sequence cannot be read.
        """
        dtype, unet_config = jnp.dtype(config.dtype), models.unet.config
        execution = ExecutionConfig(dtype, forms=models.unet.execution.forms)
        unet, pose_encoder = UNet3D(unet_config, execution), PoseEncoder(unet_config, dtype)
        self._programs = SamplingPrograms(
            models.encoders, models.schedule, unet, pose_encoder, trained_frames=trained_frames
        )
        captions = [] if config.data.caption is None else [config.data.caption]
        self._prompts, self._mesh = config.validation.prompt or captions, mesh
        self._sampling = config.validation_sampling()
        self._clip, self._output_dir = clip, Path(config.output_dir)
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
        latents = None if self._clip is None else self._invert(pipeline, self._clip, done)
        for number, prompt in enumerate(self._prompts):
            output = pipeline(prompt, self._poses, latents=latents)
            rows = [x for x in (self._clip, output.pose_images, output.frames) if x is not None]
            training_log.images(done, f"{number:02d}", image_grid(rows))

    def _invert(
        self, pipeline: FollowYourPosePipeline, clip: Frames, done: int
    ) -> Float32[np.ndarray, "f h w c"]:
        """The clip's inversion with the weights of now, which also goes into a file that sample.py reads."""
        latents = pipeline.invert(clip, INVERSION_PROMPT, self._sampling)
        file = self._output_dir / INVERSIONS / f"ddim_latent-{done}.npz"
        inverted = InvertedLatents(
            latents, self._sampling.num_inference_steps, schedule=repr(self._programs.schedule)
        )
        save_inversion(file, inverted)
        return latents
