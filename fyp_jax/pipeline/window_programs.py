"""The programs of a long clip, which the host calls for one group of windows after the other.

They are methods of `SamplingPrograms`. Their temporaries are those of one window on each device; beside these
they hold arrays of the clip: latents, history, predictions and pose features.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from fyp_jax.diffusion import solvers
from fyp_jax.diffusion.multistep import History
from fyp_jax.pipeline.guidance import KeyFrame, predict_windows
from fyp_jax.types import FeatureMaps, Latents, Params, TextEmbeddings


def _add_windows(
    self: Any,
    params: Params,
    z: Latents,
    blended: Latents,
    starts: Int[Array, "g"],
    weights: Float[Array, "g k"],
    t: Int[Array, ""],
    text: TextEmbeddings,
    negative: TextEmbeddings,
    pose_features: Sequence[FeatureMaps] | None,
    guidance_scale: Float[Array, ""],
    key_frame: KeyFrame | None,
    *,
    pose_guidance: bool = False,
) -> tuple[Latents, KeyFrame]:
    """Add the weighted predictions of a group of windows to `blended`, which is donated; and the clip's key
    frame.

    `key_frame` is None for the group whose first window begins at frame 0.
    """
    window = weights.shape[1]

    def cut(clip: Float[Array, "1 f ..."]) -> Float[Array, "g k ..."]:
        return jnp.stack([jax.lax.dynamic_slice_in_dim(clip[0], start, window) for start in starts])

    poses = None if pose_features is None else [cut(x) for x in pose_features]
    predictions, key_frame = predict_windows(
        self.unet,
        params["unet"],
        cut(z),
        t,
        text,
        negative,
        poses,
        guidance_scale,
        pose_guidance,
        self.mesh,
        key_frame,
    )
    for start, prediction, weight in zip(starts, predictions, weights, strict=True):
        there = jax.lax.dynamic_slice_in_dim(blended, start, window, axis=1)
        there += weight[None, :, None, None, None] * prediction[None]
        blended = jax.lax.dynamic_update_slice_in_dim(blended, there, start, axis=1)
    return _replicated(self, (blended, key_frame))


add_key_window = jax.jit(_add_windows, static_argnames=("self", "pose_guidance"), donate_argnames="blended")
"""`_add_windows` for the first group of a step. It has a name of its own because it is another program."""
add_windows = jax.jit(_add_windows, static_argnames=("self", "pose_guidance"), donate_argnames="blended")
"""`_add_windows` for the other groups."""


@functools.partial(
    jax.jit,
    static_argnames=("self", "num_inference_steps", "solver", "timestep_spacing", "eta", "inverse"),
    donate_argnames=("z", "history", "blended"),
)
def solve(
    self: Any,
    z: Latents,
    history: History,
    blended: Latents,
    step_index: Int[Array, ""],
    key: Array,
    *,
    num_inference_steps: int,
    solver: str,
    timestep_spacing: str | None,
    eta: float,
    inverse: bool = False,
) -> tuple[Latents, History, Latents]:
    """One step of the solver with a prediction for the whole clip: latents, history, and zeros for the next
    prediction. All arrays are donated."""
    steps = solvers.make_solver_schedule(self.schedule, num_inference_steps, solver, timestep_spacing)
    steps = solvers.reverse(steps) if inverse else steps
    z, history = solvers.step(lambda z, t: blended, z, history, step_index, steps, self.schedule, eta, key)
    return _replicated(self, (z, history, jnp.zeros_like(blended)))


def _replicated(self: Any, tree: Any) -> Any:
    """The same arrays, whole on each device of the mesh."""
    if self.mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(self.mesh, P()))
