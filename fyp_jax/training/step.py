"""One training step, for every stage and every mesh: state and batch become the next state and metrics."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from fyp_jax import parallel, trees
from fyp_jax.diffusion.schedule import ScheduleConfig, add_noise, target
from fyp_jax.errors import UserError
from fyp_jax.models.frozen import FrozenModels
from fyp_jax.models.pose_encoder import PoseEncoder
from fyp_jax.models.unet import UNet3D
from fyp_jax.parallel import AXES, CLIPS
from fyp_jax.training.optimizer import update_average
from fyp_jax.training.state import Arrays, TrainState, state_specs
from fyp_jax.types import Batch, Latents, Params, Text

ENCODERS = ("vae/", "text_encoder/")
QUARTERS = 4
"""Parts of the training timesteps that get a loss of their own."""

Metrics = dict[str, Any]
Step = Callable[[TrainState, Batch, Int[Array, "devices"]], tuple[TrainState, Metrics]]


@dataclass(frozen=True, eq=False)
class Networks:
    """The models of a stage without their weights; no pose encoder where the stage uses no poses."""

    frozen: FrozenModels
    schedule: ScheduleConfig
    unet: UNet3D
    pose_encoder: PoseEncoder | None


class Draws(NamedTuple):
    """The random numbers of a step, for some clips and some of their frames."""

    t: Int[Array, "b"]
    """Training timestep of each clip."""
    noise: Latents
    """What is added to the latents."""
    posterior: Latents
    """What the VAE's latents are drawn with."""


def draw(
    key: jax.Array,
    clips: Int[Array, "b"],
    frames: Int[Array, "f"],
    latent: tuple[int, int, int],
    timesteps: int,
) -> Draws:
    """Random numbers by key, by a clip's place in the global batch, and by a frame's place in the clip.

    So they are the same however the batch is shared out. `latent` is (height, width, channels).
    """

    def of_clip(clip: Int[Array, ""]) -> tuple[jax.Array, jax.Array]:
        timestep_key, frames_key = jax.random.split(jax.random.fold_in(key, clip))

        def of_frame(frame: Int[Array, ""]) -> jax.Array:
            return jax.random.normal(jax.random.fold_in(frames_key, frame), (2, *latent))

        return jax.random.randint(timestep_key, (), 0, timesteps), jax.vmap(of_frame)(frames)

    t, normals = jax.vmap(of_clip)(clips)
    return Draws(t, normals[:, :, 0], normals[:, :, 1])


def clip_losses(
    networks: Networks, params: Params, latents: Latents, draws: Draws, text: Text, skeleton: Any
) -> Float[Array, "b"]:
    """Mean squared error of each clip's prediction (Follow Your Pose, eq. 2), in float32.

    `params` has `unet` and, for networks with one, `pose_encoder`; `skeleton` is None without it.
    """
    features = None
    if networks.pose_encoder is not None:
        features = networks.pose_encoder.apply({"params": params["pose_encoder"]}, skeleton)
    noisy = add_noise(latents, draws.noise, draws.t, networks.schedule)
    prediction = networks.unet.apply({"params": params["unet"]}, noisy, draws.t, text, features)  # pyright: ignore
    wanted = target(latents, draws.noise, draws.t, networks.schedule)
    error = jnp.asarray(prediction, jnp.float32) - wanted
    return jnp.mean(jnp.square(error), axis=(1, 2, 3, 4))


def make_step(
    networks: Networks,
    optimizer: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    mesh: Mesh,
    state: TrainState,
    *,
    seed: int,
    batch_size: int,
    accumulate: int = 1,
    average_decay: float | None = None,
) -> Step:
    """Compile-ready step over a mesh; `state` (or its shapes) says what stands where.

    The step takes a state (which it consumes), a global batch and one vote of each device, and gives the next
    state and metrics: `loss`, `loss_quarters` [4] and `clips_in_quarters` [4], `grad_norm` (before clipping),
    `param_norm` (trainable), `lr`, `skipped`, `skipped_in_row`, and `vote`, the largest of all votes.
    `accumulate` is the number of parts in which a batch is computed, one after the other.
    """
    specs = state_specs(state, mesh)
    gradient = sharded_gradient(networks, mesh, specs, batch_size, accumulate)

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
            "lr": jnp.asarray(learning_rate(state.step - state.skipped)),
            "skipped": after.skipped,
            "skipped_in_row": after.skipped_in_row,
        }
        return after, metrics

    state_shardings = parallel.shardings(specs, mesh)
    batch_shardings = parallel.shardings(_batch_specs(networks), mesh)
    votes = parallel.shardings(P(AXES), mesh)
    return jax.jit(
        step,
        in_shardings=(state_shardings, batch_shardings, votes),
        out_shardings=(state_shardings, parallel.shardings(P(), mesh)),
        donate_argnums=0,
    )


def _batch_specs(networks: Networks) -> Batch:
    video, ids = parallel.clip_spec(5), parallel.clip_spec(2)
    return Batch(video, ids, None if networks.pose_encoder is None else video)  # pyright: ignore


def sharded_gradient(
    networks: Networks, mesh: Mesh, specs: TrainState, batch_size: int, accumulate: int
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
        encoders = {path: leaf for path, leaf in frozen.items() if path.startswith(ENCODERS)}
        others = {path: leaf for path, leaf in frozen.items() if path not in encoders}
        encoders = trees.unflatten(_whole(encoders, specs.frozen))

        def objective(trainable: Arrays, latents: Latents, draws: Draws, text: Text, skeleton: Any) -> Any:
            params = _whole(trainable, specs.trainable) | _whole(others, specs.frozen)
            losses = clip_losses(networks, trees.unflatten(params), latents, draws, text, skeleton)
            return losses.sum() * scale, losses

        if mesh.shape["fsdp"] > 1:  # shares of others are fetched again, not kept for the gradient
            policy = jax.checkpoint_policies.save_anything_except_these_names(parallel.FETCHED)
            objective = jax.checkpoint(objective, policy=policy)

        # Varying over the mesh, or JAX would add up gradients over devices at each use of a parameter.
        mine = jax.tree.map(parallel.varying, trainable, specs.trainable)

        def add_part(total: Arrays, part: tuple[Batch, Int[Array, "p"]]) -> tuple[Arrays, tuple[Any, Any]]:
            batch, clips = part
            height, width = (side // networks.frozen.downscale for side in batch.video.shape[2:4])
            latent = (height, width, networks.unet.config.in_channels)
            draws = draw(key, clips, frame_numbers, latent, networks.schedule.num_train_timesteps)
            latents = networks.frozen.encode_images(encoders, jnp.asarray(batch.video), draws.posterior)
            text = networks.frozen.encode_text(encoders, jnp.asarray(batch.ids))
            found, gradients = jax.value_and_grad(objective, has_aux=True)(
                mine, latents, draws, text, batch.skeleton
            )
            return jax.tree.map(jnp.add, total, gradients), (found[1], draws.t)

        parts = jax.tree.map(
            lambda leaf: rearrange(leaf, "(n b) ... -> n b ...", n=accumulate),
            (batch, first_clip + jnp.arange(share)),
        )
        zeros = jax.tree.map(lambda leaf: parallel.varying(jnp.zeros(leaf.shape, leaf.dtype), P()), mine)
        # One part needs no loop: on a CPU, XLA runs a loop's convolutions ten times as slowly.
        gradients, (losses, t) = jax.lax.scan(add_part, zeros, parts, unroll=accumulate == 1)
        gradients = jax.tree.map(parallel.sum_of_shares, gradients, specs.trainable)

        quarter = t.reshape(-1) * QUARTERS // networks.schedule.num_train_timesteps
        is_in = jax.nn.one_hot(quarter, QUARTERS, dtype=jnp.float32)
        sums = jax.lax.psum((losses.reshape(-1) / frame_shares) @ is_in, AXES)
        counts = jax.lax.psum(is_in.sum(axis=0), CLIPS)
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
        in_specs=(specs.trainable, specs.frozen, _batch_specs(networks), P(), P(AXES)),
        out_specs=(specs.trainable, P()),
    )


def _whole(shares: Params, specs: Params) -> dict[str, Any]:
    return {path: parallel.whole(leaf, specs[path]) for path, leaf in shares.items()}
