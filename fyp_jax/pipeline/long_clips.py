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
from fyp_jax.diffusion.multistep import History
from fyp_jax.pipeline.params import SamplingParams
from fyp_jax.pipeline.programs import STEP_PARAMS, SamplingPrograms
from fyp_jax.pipeline.windows import make_windows, window_starts
from fyp_jax.types import FeatureMaps, Latents, Params, TextEmbeddings

StepFn = Callable[[Latents, History, int], tuple[Latents, History]]
"""(latents, history, index of the step) -> latents and history after the step."""


def window_step(
    programs: SamplingPrograms,
    params: Params,
    sampling: SamplingParams,
    text: TextEmbeddings,
    negative: TextEmbeddings,
    pose_features: Sequence[FeatureMaps] | None,
    key: Array,
    inverse: bool = False,
) -> StepFn:
    """A function that makes one step of a long clip: a prediction window by window, and then the solver's
    step."""
    run, mesh, window = programs.run, programs.mesh, programs.window(sampling)
    steps = programs.solver_schedule(sampling)
    timesteps = np.asarray((solvers.reverse(steps) if inverse else steps).t)
    scale = np.float32(sampling.guidance_scale)
    static = {name: getattr(sampling, name) for name in STEP_PARAMS if name != "pose_guidance"}
    static |= {"inverse": True} if inverse else {}
    group = 1 if mesh is None else mesh.shape["data"]
    zeros: list[Latents] = []

    def step(z: Latents, history: History, index: int) -> tuple[Latents, History]:
        blended, key_frame = zeros.pop() if zeros else jnp.zeros_like(z), None
        windows = make_windows(z.shape[1], window, sampling.window_overlap, index, group)
        for starts, weights in zip(*windows, strict=True):
            name = "add_key_window" if key_frame is None else "add_windows"
            args = z, blended, starts, weights, timesteps[index], text, negative, pose_features, scale
            blended, key_frame = run(name, params, *args, key_frame, pose_guidance=sampling.pose_guidance)
        z, history, blended = run("solve", z, history, blended, np.int32(index), key, **static)
        zeros.append(blended)
        return z, history

    return step


def encode_pose_blocks(
    programs: SamplingPrograms, params: Params, pose_images: UInt8[np.ndarray, "f H W 3"], window: int
) -> list[FeatureMaps]:
    """Feature maps of a long clip, computed for as many frames at a time as a window has."""
    starts = window_starts(len(pose_images), window)
    blocks = []
    for start in starts:
        images = pose_images[None, start : start + window].astype(np.float32) / 255
        blocks.append(programs.run("encode_pose", params, images))
    joined = [_join(list(level), starts, jnp.concatenate) for level in zip(*blocks, strict=True)]
    return joined if programs.mesh is None else jax.device_put(joined, NamedSharding(programs.mesh, P()))


def decode_blocks(
    programs: SamplingPrograms,
    params: Params,
    z: Latents,
    window: int,
    chunk: int,
    on_host: Callable[[Array], Any],
) -> UInt8[np.ndarray, "f H W 3"]:
    """The frames of a long clip, decoded for as many latents at a time as a window has."""
    starts = window_starts(z.shape[1], window)
    blocks = []
    for start in starts:
        latents = jax.lax.dynamic_slice_in_dim(z, start, window, axis=1)
        blocks.append(on_host(programs.run("decode", params, latents, chunk=chunk))[None])
    return _join(blocks, starts, np.concatenate)[0]


def _join(blocks: list[Any], starts: list[int], concatenate: Callable[..., Any]) -> Any:
    """Blocks of frames, one behind the other; where the last two overlap, the frames of the last one."""
    ends = [*starts[1:], starts[-1] + blocks[-1].shape[1]]
    parts = [block[:, : end - start] for block, start, end in zip(blocks, starts, ends, strict=True)]
    return concatenate(parts, axis=1)
