"""Sampling of clips that are longer than a window: the host goes from window to window
(`pipeline/windows.py`)."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, UInt8

from fyp_jax.diffusion import solvers
from fyp_jax.pipeline.params import SamplingParams
from fyp_jax.pipeline.programs import STEP_PARAMS
from fyp_jax.pipeline.windows import make_windows, window_starts
from fyp_jax.types import Params

FRAMES = -4
"""The axis of frames of latents, feature maps and pixels, with or without an axis of clips in front."""

StepFn = Callable[[Any, Any, int], tuple[Any, Any]]
"""(latents, history, index of the step) -> latents and history after the step."""


def window_step(
    programs: Any,
    params: Params,
    sampling: SamplingParams,
    text: Any,
    negative: Any,
    pose_features: Sequence[Any] | None,
    guidance_scale: Any,
    key: Array,
    inverse: bool = False,
) -> StepFn:
    """A function that makes one step of a long clip, or of a batch of them: a prediction window by window,
    and then the solver's step. Arguments are those of `sampling_loop.denoise`."""
    run, mesh, window = programs.run, programs.mesh, programs.window(sampling)
    steps = programs.solver_schedule(sampling)
    timesteps = np.asarray((solvers.reverse(steps) if inverse else steps).t)
    static = {name: getattr(sampling, name) for name in STEP_PARAMS if name != "pose_guidance"}
    static |= {"inverse": True} if inverse else {}
    group = 1 if mesh is None else mesh.shape["data"]
    zeros: list[Any] = []

    def step(z: Any, history: Any, index: int) -> tuple[Any, Any]:
        blended, key_frame = zeros.pop() if zeros else jnp.zeros_like(z), None
        windows = make_windows(z.shape[FRAMES], window, sampling.window_overlap, index, group)
        for starts, weights in zip(*windows, strict=True):
            name = "add_key_window" if key_frame is None else "add_windows"
            args = (
                z,
                blended,
                starts,
                weights,
                timesteps[index],
                text,
                negative,
                pose_features,
                guidance_scale,
            )
            blended, key_frame = run(name, params, *args, key_frame, pose_guidance=sampling.pose_guidance)
        z, history, blended = run("solve", z, history, blended, np.int32(index), key, **static)
        zeros.append(blended)
        return z, history

    return step


def encode_pose_blocks(
    programs: Any, params: Params, pose_images: UInt8[np.ndarray, "*clips 1 f H W 3"], window: int
) -> list[Any]:
    """Feature maps of a long clip, computed for as many frames at a time as a window has."""
    starts = window_starts(pose_images.shape[FRAMES], window)
    blocks = []
    for start in starts:
        images = pose_images[..., start : start + window, :, :, :].astype(np.float32) / 255
        blocks.append(programs.run("encode_pose", params, images))
    joined = [_join(list(level), starts, jnp.concatenate) for level in zip(*blocks, strict=True)]
    return joined if programs.mesh is None else jax.device_put(joined, NamedSharding(programs.mesh, P()))


def decode_blocks(
    programs: Any, params: Params, z: Any, window: int, chunk: int
) -> UInt8[np.ndarray, "*clips 1 f H W 3"]:
    """The frames of a long clip, decoded for as many latents at a time as a window has."""
    starts = window_starts(z.shape[FRAMES], window)
    blocks = []
    for start in starts:
        latents = jax.lax.dynamic_slice_in_dim(z, start, window, axis=FRAMES)
        blocks.append(programs.on_host(programs.run("decode", params, latents, chunk=chunk)))
    return _join(blocks, starts, np.concatenate)


def _join(blocks: list[Any], starts: list[int], concatenate: Callable[..., Any]) -> Any:
    """Blocks of frames, one behind the other; where the last two overlap, the frames of the last one."""
    ends = [*starts[1:], starts[-1] + blocks[-1].shape[FRAMES]]
    parts = [
        block[..., : end - start, :, :, :] for block, start, end in zip(blocks, starts, ends, strict=True)
    ]
    return concatenate(parts, axis=FRAMES)
