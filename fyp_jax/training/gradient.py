"""The gradient of a stage's loss over a mesh: each device computes its clips and its frames, one sum joins
them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from fyp_jax.errors import UserError
from fyp_jax.parallel.mesh import AXES, BATCH_AXES, clip_spec
from fyp_jax.parallel.sharded_params import box_params, psum_gradient, pvary
from fyp_jax.training.losses import LossFn, Models, NoiseSample, sample_noise
from fyp_jax.training.state import Arrays, TrainState
from fyp_jax.types import Batch, LatentBatch

TIMESTEP_BINS = 4
"""Equal parts of the training timesteps; each gets a loss of its own."""

Metrics = dict[str, Any]
AnyBatch = Batch | LatentBatch
GradientFn = Callable[[Arrays, Arrays, AnyBatch, jax.Array, Int[Array, "devices"]], tuple[Arrays, Metrics]]
"""(trainable, frozen, batch, key, stop signals) -> gradients, sharded as the parameters are, and metrics."""


def sharded_gradient(
    models: Models,
    loss_fn: LossFn,
    mesh: Mesh,
    specs: TrainState,
    batch_size: int,
    grad_accumulation_steps: int,
) -> GradientFn:
    """The mean loss over a global batch and its gradient; `specs` are the partition specs of the state.

    All that crosses devices stands here and in `models.execution`: shards of parameters (`fsdp`),
    neighbouring frames and sums of norms (`frame`), and at the end one sum of the gradients. Raises UserError
    where `grad_accumulation_steps` does not divide the clips of a device.
    """
    clip_shards, frame_shards = mesh.shape["data"] * mesh.shape["fsdp"], mesh.shape["frame"]
    local_clips = batch_size // clip_shards
    if local_clips % grad_accumulation_steps:
        raise UserError(
            f"optimizer.grad_accumulation_steps={grad_accumulation_steps} does not divide the {local_clips} "
            f"clips of a device (data.batch_size={batch_size} over {clip_shards} shards)"
        )
    scale = 1 / (batch_size * frame_shards)

    def on_device(
        trainable: Arrays, frozen: Arrays, batch: AnyBatch, key: jax.Array, stop_signals: Int[Array, "1"]
    ) -> tuple[Arrays, Metrics]:
        shard = jax.lax.axis_index("data") * mesh.shape["fsdp"] + jax.lax.axis_index("fsdp")
        frames = batch.num_frames
        frame_indices = jax.lax.axis_index("frame") * frames + jnp.arange(frames)

        def scaled_loss(trainable: Arrays, batch: AnyBatch, noise_sample: NoiseSample) -> Any:
            params = box_params(trainable | frozen, specs.trainable | specs.frozen)
            per_example_loss = loss_fn(models, unflatten_dict(params, sep="/"), batch, noise_sample)
            return per_example_loss.sum() * scale, per_example_loss

        # Varying over the mesh, or JAX would sum gradients over devices at each use of a parameter.
        varying = jax.tree.map(pvary, trainable, specs.trainable)

        def add_microbatch(
            total: Arrays, part: tuple[AnyBatch, Int[Array, "p"]]
        ) -> tuple[Arrays, tuple[Any, Any]]:
            batch, clips = part
            noise_sample = _noise_for(models, key, batch, clips, frame_indices)
            (_, losses), gradients = jax.value_and_grad(scaled_loss, has_aux=True)(
                varying, batch, noise_sample
            )
            return jax.tree.map(jnp.add, total, gradients), (losses, noise_sample.t)

        all_clips = batch, shard * local_clips + jnp.arange(local_clips)
        zeros = jax.tree.map(lambda leaf: pvary(jnp.zeros(leaf.shape, leaf.dtype), P()), varying)
        if (
            grad_accumulation_steps == 1
        ):  # no loop: in one, XLA on a CPU runs convolutions ten times as slowly
            gradients, (losses, t) = add_microbatch(zeros, all_clips)
        else:
            parts = jax.tree.map(
                lambda leaf: rearrange(leaf, "(n b) ... -> n b ...", n=grad_accumulation_steps), all_clips
            )
            gradients, (losses, t) = jax.lax.scan(add_microbatch, zeros, parts)
        gradients = jax.tree.map(psum_gradient, gradients, specs.trainable)
        metrics = _loss_metrics(
            losses.reshape(-1) / frame_shards, t.reshape(-1), models.schedule.num_train_timesteps, batch_size
        )
        return gradients, metrics | {"stop_signal": jax.lax.pmax(stop_signals[0], AXES)}

    return jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(specs.trainable, specs.frozen, batch_specs(models), P(), P(AXES)),
        out_specs=(specs.trainable, P()),
    )


def batch_specs(models: Models) -> AnyBatch:
    """Partition specs of a batch: clips over `data` and `fsdp`, frames over `frame`."""
    video, clips = clip_spec(5), clip_spec(2)
    poses = None if models.pose_encoder is None else video
    if models.cached_latents:
        return LatentBatch(video, video, clips, poses)  # pyright: ignore[reportArgumentType]
    return Batch(video, clips, poses)  # pyright: ignore[reportArgumentType]


def _noise_for(
    models: Models,
    key: jax.Array,
    batch: AnyBatch,
    clips: Int[Array, "b"],
    frame_indices: Int[Array, "f"],
) -> NoiseSample:
    """The random numbers of these clips, by their indices in the global batch."""
    latent = (*batch.latent_size(models.encoders.spec.downscale), models.unet.config.in_channels)
    timesteps = models.schedule.num_train_timesteps
    return sample_noise(key, clips, frame_indices, latent, timesteps, models.noise_correlation)


def _loss_metrics(
    per_example_loss: Float[Array, "b"], t: Int[Array, "b"], timesteps: int, batch_size: int
) -> Metrics:
    """The mean loss of a global batch, and the mean loss and number of clips of each bin of timesteps."""
    in_bin = jax.nn.one_hot(t * TIMESTEP_BINS // timesteps, TIMESTEP_BINS, dtype=jnp.float32)
    sums = jax.lax.psum(per_example_loss @ in_bin, AXES)
    counts = jax.lax.psum(in_bin.sum(axis=0), BATCH_AXES)
    return {
        "loss": sums.sum() / batch_size,
        "timestep_bin_loss": sums / jnp.maximum(counts, 1),
        "timestep_bin_clips": counts,
    }
