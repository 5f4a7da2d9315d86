"""Batches of clips of one shape: each device makes clips of its own, whole, with the programs of one clip.

No device waits for another one within a step, and a clip is what it would be alone: its noise comes from its
seed, and no number of one clip meets those of another.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fyp_jax.diffusion.solvers import SolverSchedule
from fyp_jax.pipeline.output import Frames, PipelineOutput
from fyp_jax.pipeline.params import SamplingParams
from fyp_jax.pipeline.pipeline import FollowYourPosePipeline
from fyp_jax.pipeline.programs import STATIC_PARAMS, SamplingPrograms
from fyp_jax.pipeline.sampling_loop import decode, denoise, start_clip, tokenize

SHAPE_PARAMS = (*STATIC_PARAMS, "num_frames", "window", "window_overlap", "height", "width")
"""Fields of SamplingParams that the clips of a batch have in common: they share a program."""

EACH, ALL = 0, None
"""An argument has a value for each clip of the batch, or one for all of them."""
ARGUMENTS = {
    "encode_text": (ALL, EACH),
    "encode_pose": (ALL, EACH),
    "denoise": (ALL, EACH, EACH, ALL, EACH, EACH, EACH, EACH, EACH),
    "add_key_window": (ALL, EACH, EACH, ALL, ALL, ALL, EACH, EACH, EACH, EACH, EACH),
    "add_windows": (ALL, EACH, EACH, ALL, ALL, ALL, EACH, EACH, EACH, EACH, EACH),
    "solve": (EACH, EACH, EACH, ALL, EACH),
    "decode": (ALL, EACH),
}
"""The arguments of each program of `SamplingPrograms`, in their order."""
DONATED = {"denoise": (1, 2), "add_key_window": (2,), "add_windows": (2,), "solve": (0, 1, 2)}


class ClipRequest(NamedTuple):
    """What a clip is made of."""

    prompt: str
    pose_images: Frames | None
    sampling: SamplingParams


def shape_of(sampling: SamplingParams, has_pose: bool) -> tuple[Any, ...]:
    """What clips of one batch have in common: they share a program."""
    return (has_pose, *(getattr(sampling, name) for name in SHAPE_PARAMS))


@dataclasses.dataclass(frozen=True, eq=False)
class BatchPrograms:
    """The programs of one clip (`SamplingPrograms`, without a mesh), for a batch of clips divided over
    devices.

    Arrays have an axis of clips in front, a multiple of the devices long. A device that has one clip runs the
    program of one clip.
    """

    programs: SamplingPrograms
    devices: Mesh
    """A mesh of one axis, `data`."""
    _jitted: dict[Any, Callable[..., Any]] = dataclasses.field(default_factory=dict)

    mesh = None  # no two devices compute a clip together

    def window(self, sampling: SamplingParams) -> int:
        return self.programs.window(sampling)

    def solver_schedule(self, sampling: SamplingParams) -> SolverSchedule:
        return self.programs.solver_schedule(sampling)

    def on_host(self, array: jax.Array) -> np.ndarray:
        return np.asarray(array)

    def run(self, name: str, *args: Any, **static: Any) -> Any:
        """Call a program by its name, for all clips of the batch."""
        key = name, tuple(sorted(static.items()))
        if key not in self._jitted:
            self._jitted[key] = self._jit(name, static)
        return self._jitted[key](*args)

    def shard(self, array: Any) -> jax.Array:
        """An array with an axis of clips in front, divided over the devices."""
        return jax.device_put(array, NamedSharding(self.devices, P("data")))

    def _jit(self, name: str, static: dict[str, Any]) -> Callable[..., Any]:
        in_axes = ARGUMENTS[name]
        one_clip = functools.partial(getattr(self.programs, name), **static)

        def on_device(*args: Any) -> Any:
            each = [x for x, axis in zip(args, in_axes, strict=True) if axis == EACH]
            if len(jax.tree.leaves(each)[0]) > 1:
                return jax.vmap(one_clip, in_axes)(*args)
            single = [
                jax.tree.map(lambda leaf: leaf[0], x) if axis == EACH else x
                for x, axis in zip(args, in_axes, strict=True)
            ]
            return jax.tree.map(lambda leaf: leaf[None], one_clip(*single))

        specs = tuple(P("data") if axis == EACH else P() for axis in in_axes)
        mapped = jax.shard_map(
            on_device, mesh=self.devices, in_specs=specs, out_specs=P("data"), check_vma=False
        )
        return jax.jit(mapped, donate_argnums=DONATED.get(name, ()))


class BatchSampler:
    """A pipeline that makes batches of clips, with its weights on each device."""

    def __init__(self, pipeline: FollowYourPosePipeline, devices: Sequence[Any]):
        """`pipeline` has no mesh of its own; `devices` are those of this process that make clips."""
        mesh = Mesh(np.array(devices), ("data",))
        self.programs = BatchPrograms(pipeline.programs, mesh)
        self._params = jax.device_put(pipeline.params, NamedSharding(mesh, P()))

    def __call__(
        self,
        requests: Sequence[ClipRequest],
        clips_per_device: int = 1,
        on_step: Callable[[], Any] | None = None,
    ) -> list[PipelineOutput]:
        """Make clips of one shape, at most devices x clips_per_device of them.

        Each clip is the one that the pipeline makes alone, but for rounding (1e-5 in float32). A batch that
        is not full is filled up with its last clip, so that it runs the same program.

        Raises ValueError for clips of several shapes and for more clips than that.
        """
        size = self.programs.devices.size * clips_per_device
        shapes = {shape_of(request.sampling, request.pose_images is not None) for request in requests}
        if len(shapes) != 1 or len(requests) > size:
            raise ValueError(f"{len(requests)} clips are no batch of at most {size} clips of one shape")
        filled = [*requests, *[requests[-1]] * (size - len(requests))]
        single, sampling = self.programs.programs, requests[0].sampling
        starts = [start_clip(single, request.sampling) for request in filled]
        prompts = {text for x in filled for text in (x.prompt, x.sampling.negative_prompt)}
        ids = {prompt: tokenize(single.encoders, prompt) for prompt in sorted(prompts)}
        poses = [request.pose_images for request in filled if request.pose_images is not None]
        shard = self.programs.shard
        z = denoise(
            self.programs,
            self._params,
            shard(jnp.stack([z for z, _ in starts])),
            np.stack([ids[request.prompt] for request in filled]),
            np.stack([ids[request.sampling.negative_prompt] for request in filled]),
            np.stack(poses)[:, None] if poses else None,
            sampling,
            shard(np.array([request.sampling.guidance_scale for request in filled], np.float32)),
            shard(jnp.stack([key for _, key in starts])),
            on_step,
        )
        frames, latents = decode(self.programs, self._params, z, sampling), self.programs.on_host(z)
        return [
            PipelineOutput(frames[i, 0], latents[i, 0], request.pose_images)
            for i, request in enumerate(requests)
        ]
