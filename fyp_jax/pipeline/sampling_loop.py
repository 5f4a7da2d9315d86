"""The loop of sampling on the host, for one clip or for a batch of clips of one shape.

Latents have the shape [1 f h w c]; those of a batch [clips 1 f h w c], and so have texts and pose features an
axis of clips in front. The programs say which of the two they take.
"""

import logging
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Int, UInt8

from fyp_jax.diffusion.solvers import SolverSchedule, init_history
from fyp_jax.models.encoders import LatentEncoders
from fyp_jax.pipeline.long_clips import decode_blocks, encode_pose_blocks, window_step
from fyp_jax.pipeline.noise import prepare_latents
from fyp_jax.pipeline.params import SamplingParams
from fyp_jax.pipeline.programs import STEP_PARAMS, SamplingPrograms
from fyp_jax.types import Latents, Params

log = logging.getLogger(__name__)


@runtime_checkable
class ClipPrograms(Protocol):
    """What the loop needs of programs: those of one clip (`SamplingPrograms`), or of a batch."""

    @property
    def mesh(self) -> jax.sharding.Mesh | None: ...
    def run(self, name: str, *args: Any, **static: Any) -> Any: ...
    def window(self, sampling: SamplingParams) -> int: ...
    def solver_schedule(self, sampling: SamplingParams) -> SolverSchedule: ...
    def on_host(self, array: jax.Array) -> np.ndarray: ...


def tokenize(encoders: LatentEncoders, prompt: str) -> Int[np.ndarray, "1 l"]:
    """Ids of a prompt; one that is too long for the text encoder is cut, with a warning."""
    input_ids, cut = encoders.tokenize(prompt)
    if cut:
        log.warning(
            "the prompt is longer than %d tokens; the model does not see this part: %r",
            input_ids.shape[1],
            cut,
        )
    return input_ids


def start_clip(programs: SamplingPrograms, sampling: SamplingParams) -> tuple[Latents, Array]:
    """The noise from which a clip starts, and the key of the noise that its steps add; both by its seed."""
    noise_key, step_key = jax.random.split(jax.random.key(sampling.seed))
    shape = programs.latent_shape(sampling.num_frames, sampling.height, sampling.width)
    return prepare_latents(noise_key, shape, sampling.noise_correlation, programs.window(sampling)), step_key


def denoise(
    programs: ClipPrograms,
    params: Params,
    z: Any,
    input_ids: Int[np.ndarray, "*clips 1 l"],
    negative_ids: Int[np.ndarray, "*clips 1 l"],
    pose_images: UInt8[np.ndarray, "*clips 1 f H W 3"] | None,
    sampling: SamplingParams,
    guidance_scale: Any,
    key: Array,
    on_step: Callable[[], Any] | None = None,
    inverse: bool = False,
) -> Any:
    """Latents after all steps of the solver: each step is one compiled program, or several of a long clip.

    `guidance_scale` (a number, or one for each clip) and `key` are those of the clips; of `sampling` only the
    fields are read that clips of one shape have in common. `inverse` goes from clean latents to noise.
    """
    run = programs.run
    text = run("encode_text", params, input_ids)
    negative = run("encode_text", params, negative_ids)
    window, features = programs.window(sampling), None
    static: dict[str, Any] = {"inverse": True} if inverse else {}
    if sampling.num_frames > window:
        if pose_images is not None:
            features = encode_pose_blocks(programs, params, pose_images, window)
        step = window_step(programs, params, sampling, text, negative, features, guidance_scale, key, inverse)
    else:
        if pose_images is not None:
            features = run("encode_pose", params, pose_images.astype(np.float32) / 255)
        static |= {name: getattr(sampling, name) for name in STEP_PARAMS}

        def step(z: Any, history: Any, index: int, /) -> tuple[Any, Any]:
            args = params, z, history, np.int32(index), text, negative, features, guidance_scale, key
            return run("denoise", *args, **static)

    history = init_history(z, sampling.solver)
    for index in range(sampling.num_inference_steps):
        z, history = step(z, history, index)
        if on_step is not None:
            z.block_until_ready()
            on_step()
    return z


def decode(
    programs: ClipPrograms, params: Params, z: Any, sampling: SamplingParams
) -> UInt8[np.ndarray, "*clips 1 f H W 3"]:
    """RGB in 0..255 of clean latents."""
    window, chunk = programs.window(sampling), sampling.decode_chunk_size
    if sampling.num_frames > window:
        return decode_blocks(programs, params, z, window, chunk)
    return programs.on_host(programs.run("decode", params, z, chunk=chunk))
