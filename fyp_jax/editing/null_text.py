"""Null-text inversion (Mokady et al. 2023): embeddings of the empty text, one for each step, with which
sampling with guidance reproduces an inverted clip."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from fyp_jax.diffusion import ddim
from fyp_jax.editing.steps import Denoiser
from fyp_jax.types import FeatureMaps, Latents, Params

LEARNING_RATE, LEARNING_RATE_STEPS = 1e-2, 100
"""Adam's learning rate at step 0; it falls by a hundredth of it each step."""
EARLY_STOP, EARLY_STOP_GROWTH = 1e-5, 2e-5
"""The loss at which a step's optimisation ends, at step 0, and what each later step adds to it."""


class NullTextStep(NamedTuple):
    """The result of one step."""

    embedding: Float[Array, "1 l d"]
    """The empty text's embedding that this step uses."""
    z: Latents
    """The latents behind the step, with this embedding."""
    losses: Float[Array, "inner_steps"]
    """The mean squared error before each update; 0 for updates that were not needed."""


@functools.partial(jax.jit, static_argnames=("denoiser", "inner_steps"))
def null_text_step(
    denoiser: Denoiser,
    params: Params,
    z: Latents,
    embedding: Float[Array, "1 l d"],
    index: Int[Array, ""],
    target: Latents,
    text: Float[Array, "1 l d"],
    pose_features: Sequence[FeatureMaps] | None,
    guidance_scale: Float[Array, ""],
    inner_steps: int = 10,
) -> NullTextStep:
    """Fit the embedding of sampling step `index` so that the step leads from `z` to `target`, the inverted
    latents of that level. `embedding` is that of the step before."""
    ddim_schedule = ddim.make_ddim_schedule(denoiser.schedule, denoiser.num_inference_steps)
    t = ddim_schedule.t[index]
    optimizer = optax.inject_hyperparams(optax.adam)(
        learning_rate=LEARNING_RATE * (1 - index / LEARNING_RATE_STEPS)
    )

    def predict(embedding: Float[Array, "1 l d"], poses: Sequence[FeatureMaps] | None) -> Latents:
        out = denoiser.unet.apply({"params": params}, z, t[None], embedding, poses)
        return out.astype(z.dtype)  # pyright: ignore

    conditional = predict(text, pose_features)
    # The embeddings are for the unconditional rows of an edit, so these get the pose that those get.
    bare = pose_features
    if pose_features is not None and denoiser.pose_guidance:
        bare = [jnp.zeros_like(pose) for pose in pose_features]

    def behind(embedding: Float[Array, "1 l d"]) -> Latents:
        unconditional = predict(embedding, bare)
        prediction = unconditional + guidance_scale * (conditional - unconditional)
        return ddim.step(lambda z, t: prediction, z, index, ddim_schedule, denoiser.schedule)

    def loss(embedding: Float[Array, "1 l d"]) -> Float[Array, ""]:
        return jnp.mean(jnp.square(behind(embedding) - target))

    enough = EARLY_STOP + EARLY_STOP_GROWTH * index

    def going_on(carry: tuple) -> Array:
        *_, losses, i = carry
        # The loss of the last update ends the loop, so the first one is always made.
        return (i < inner_steps) & ((i == 0) | (losses[i - 1] >= enough))

    def update(carry: tuple) -> tuple:
        embedding, optimizer_state, losses, i = carry
        value, gradient = jax.value_and_grad(loss)(embedding)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state)
        return optax.apply_updates(embedding, updates), optimizer_state, losses.at[i].set(value), i + 1

    start = embedding, optimizer.init(embedding), jnp.zeros(inner_steps), jnp.int32(0)
    embedding, _, losses, _ = jax.lax.while_loop(going_on, update, start)
    return NullTextStep(embedding, behind(embedding), losses)
