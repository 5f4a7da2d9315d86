"""One training step, for every stage and every mesh: state and batch become the next state and metrics."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int

from fyp_jax import compiled
from fyp_jax.compiled import Fingerprint
from fyp_jax.config import config_lines
from fyp_jax.errors import UserError
from fyp_jax.parallel.mesh import AXES, BATCH_AXES, clip_spec, shardings
from fyp_jax.parallel.sharded_params import box_params, psum_gradient, pvary
from fyp_jax.training.config import TrainConfig
from fyp_jax.training.losses import OBJECTIVES, Losses, Models, NoiseSample, sample_noise
from fyp_jax.training.optimizer import learning_rate, make_optimizer, update_average
from fyp_jax.training.stages import stage
from fyp_jax.training.state import Arrays, TrainState, state_specs
from fyp_jax.types import Batch

QUARTERS = 4
"""Parts of the training timesteps that get a loss of their own."""

NOT_IN_A_STEP = (
    *("pretrained", "init", "fresh", "random_init", "zero_init_temporal", "out", "compiled", "mesh."),
    *("data.path", "data.stride", "data.workers", "data.max_corrupt_fraction", "data.caption_dropout"),
    *("checkpoint.", "log.", "validation."),
)
"""Fields of a run's config (by how they begin) that a compiled step does not depend on."""

Metrics = dict[str, Any]
Step = Callable[[TrainState, Batch, Int[Array, "devices"]], tuple[TrainState, Metrics]]


def make_step(
    models: Models,
    losses: Losses,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: Mesh,
    state: TrainState,
    *,
    seed: int,
    batch_size: int,
    accumulate: int = 1,
    average_decay: float | None = None,
    donate: bool = True,
) -> Step:
    """Compile-ready step over a mesh; `state` (or its shapes) says what stands where.

    The step takes a state (which it consumes), a global batch and one vote of each device, and gives the next
    state and metrics: `loss`, `loss_quarters` [4] and `clips_in_quarters` [4], `grad_norm` (before clipping),
    `param_norm` (trainable), `lr`, `skipped`, `skipped_in_row`, and `vote`, the largest of all votes.
    `accumulate` is the number of parts in which a batch is computed, one after the other. With `donate=False`
    the state is not consumed, and both are in memory.
    """
    specs = state_specs(state, mesh)
    gradient = sharded_gradient(models, losses, mesh, specs, batch_size, accumulate)

    def step(state: TrainState, batch: Batch, votes: Int[Array, "devices"]) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        gradients, metrics = gradient(state.trainable, state.frozen, batch, key, votes)
        norm = optax.global_norm(gradients)
        finite = jnp.isfinite(norm)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.trainable)
        trainable = optax.apply_updates(state.trainable, updates)
        average = state.average
        if average is not None and average_decay is not None:
            average = update_average(average, trainable, average_decay)  # pyright: ignore[reportArgumentType]

        def if_finite(new: Any, old: Any) -> Any:
            return jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, old)

        skipped = jnp.where(finite, 0, 1)
        after = TrainState(
            step=state.step + 1,
            trainable=if_finite(trainable, state.trainable),
            frozen=state.frozen,
            opt_state=if_finite(opt_state, state.opt_state),
            average=if_finite(average, state.average),
            skipped=state.skipped + skipped,
            skipped_in_row=jnp.where(finite, 0, state.skipped_in_row + 1),
        )
        metrics |= {
            "grad_norm": norm,
            "param_norm": optax.global_norm(after.trainable),
            "lr": jnp.asarray(schedule(state.step - state.skipped)),
            "skipped": after.skipped,
            "skipped_in_row": after.skipped_in_row,
        }
        return after, metrics

    state_shardings = shardings(specs, mesh)
    batch_shardings = shardings(_batch_specs(models), mesh)
    votes = shardings(P(AXES), mesh)
    return jax.jit(
        step,
        in_shardings=(state_shardings, batch_shardings, votes),
        out_shardings=(state_shardings, shardings(P(), mesh)),
        donate_argnums=(0,) if donate else (),
    )


def configured_step(
    config: TrainConfig, models: Models, mesh: Mesh, state: TrainState, donate: bool = True
) -> Step:
    """The step of a run, to be compiled; `state` (or its shapes) says what stands where."""
    return make_step(
        models,
        OBJECTIVES[stage(config.stage).objective],
        make_optimizer(config.optimizer, config.steps),
        learning_rate(config.optimizer, config.steps),
        mesh,
        state,
        seed=config.seed,
        batch_size=config.data.batch_size,
        accumulate=config.optimizer.accumulate,
        average_decay=config.optimizer.ema,
        donate=donate,
    )


def train_step_fingerprint(config: TrainConfig, models: Models, mesh: Mesh) -> Fingerprint:
    """All that a compiled step depends on: fields of the config, sizes of the models, mesh, versions."""
    fields = dict(line.split("=", 1) for line in config_lines(config))
    kept = {key: value for key, value in fields.items() if not key.startswith(NOT_IN_A_STEP)}
    if config.optimizer.schedule == "constant":
        del kept["steps"]
    return {
        **kept,
        "unet": str(models.unet.config.sizes()),
        **models.frozen.spec.sizes,
        "schedule": str(models.schedule),
        "mesh": " ".join(f"{axis}={size}" for axis, size in mesh.shape.items()),
        **compiled.here(list(mesh.devices.flatten())),
    }


def _batch_specs(models: Models) -> Batch:
    video, input_ids = clip_spec(5), clip_spec(2)
    return Batch(video, input_ids, None if models.pose_encoder is None else video)  # pyright: ignore


def sharded_gradient(
    models: Models, losses: Losses, mesh: Mesh, specs: TrainState, batch_size: int, accumulate: int
) -> Callable[..., tuple[Arrays, Metrics]]:
    """(trainable, frozen, batch, key, votes) -> gradients that stand where the parameters do, and metrics.

    Each device computes its clips and its frames. What crosses devices is written down here and in
    `models.compute`: shares of parameters (`fsdp`), neighbouring frames and sums of norms (`frame`), and at
    the end one sum of the gradients.
    """
    clip_shares, frame_shares = mesh.shape["data"] * mesh.shape["fsdp"], mesh.shape["frame"]
    share = batch_size // clip_shares
    if share % accumulate:
        raise UserError(
            f"optimizer.accumulate={accumulate} does not divide the {share} clips of a device "
            f"(data.batch_size={batch_size} over {clip_shares} shares)"
        )
    scale = 1 / (batch_size * frame_shares)

    def on_device(
        trainable: Arrays, frozen: Arrays, batch: Batch, key: jax.Array, votes: Int[Array, "1"]
    ) -> tuple[Arrays, Metrics]:
        first_clip = (jax.lax.axis_index("data") * mesh.shape["fsdp"] + jax.lax.axis_index("fsdp")) * share
        frames = batch.video.shape[1]
        frame_numbers = jax.lax.axis_index("frame") * frames + jnp.arange(frames)

        def objective(trainable: Arrays, batch: Batch, noise_sample: NoiseSample) -> Any:
            shares = box_params(trainable | frozen, specs.trainable | specs.frozen)
            of_clips = losses(models, unflatten_dict(shares, sep="/"), batch, noise_sample)
            return of_clips.sum() * scale, of_clips

        # Varying over the mesh, or JAX would add up gradients over devices at each use of a parameter.
        mine = jax.tree.map(pvary, trainable, specs.trainable)

        def add_part(total: Arrays, part: tuple[Batch, Int[Array, "p"]]) -> tuple[Arrays, tuple[Any, Any]]:
            batch, clips = part
            height, width = (side // models.frozen.spec.downscale for side in batch.video.shape[2:4])
            latent = (height, width, models.unet.config.in_channels)
            timesteps = models.schedule.num_train_timesteps
            noise_sample = sample_noise(
                key, clips, frame_numbers, latent, timesteps, models.noise_correlation
            )
            found, gradients = jax.value_and_grad(objective, has_aux=True)(mine, batch, noise_sample)
            return jax.tree.map(jnp.add, total, gradients), (found[1], noise_sample.t)

        all_clips = batch, first_clip + jnp.arange(share)
        zeros = jax.tree.map(lambda leaf: pvary(jnp.zeros(leaf.shape, leaf.dtype), P()), mine)
        if accumulate == 1:  # without a loop, in which XLA on a CPU runs convolutions ten times as slowly
            gradients, (of_clips, t) = add_part(zeros, all_clips)
        else:
            parts = jax.tree.map(
                lambda leaf: rearrange(leaf, "(n b) ... -> n b ...", n=accumulate), all_clips
            )
            gradients, (of_clips, t) = jax.lax.scan(add_part, zeros, parts)
        gradients = jax.tree.map(psum_gradient, gradients, specs.trainable)

        quarter = t.reshape(-1) * QUARTERS // models.schedule.num_train_timesteps
        is_in = jax.nn.one_hot(quarter, QUARTERS, dtype=jnp.float32)
        sums = jax.lax.psum((of_clips.reshape(-1) / frame_shares) @ is_in, AXES)
        counts = jax.lax.psum(is_in.sum(axis=0), BATCH_AXES)
        metrics = {
            "loss": sums.sum() / batch_size,
            "loss_quarters": sums / jnp.maximum(counts, 1),
            "clips_in_quarters": counts,
            "vote": jax.lax.pmax(votes[0], AXES),
        }
        return gradients, metrics

    return jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(specs.trainable, specs.frozen, _batch_specs(models), P(), P(AXES)),
        out_specs=(specs.trainable, P()),
    )
