"""How the clips of a config call the programs of sampling: what is compiled before a clip is made."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from fyp_jax.diffusion import solvers
from fyp_jax.pipeline.config import SampleConfig
from fyp_jax.pipeline.programs import STEP_PARAMS, SamplingPrograms
from fyp_jax.types import Params


class AbstractCall(NamedTuple):
    """How a program is called: shapes in place of arrays, and its static arguments."""

    args: tuple[Any, ...]
    static: dict[str, Any]


def abstract_calls(
    programs: SamplingPrograms, config: SampleConfig, params: Params, devices: Sequence[Any]
) -> dict[str, AbstractCall]:
    """Calls of the programs, by their names; a clip from text alone has no "encode_pose".

    `params` are arrays or their shapes, with their shardings.
    """
    mesh = programs.mesh

    def shaped(shape: tuple[int, ...], dtype: Any = jnp.float32, spec: P | None = None) -> Any:
        sharding = NamedSharding(mesh, spec or P()) if mesh else SingleDeviceSharding(devices[0])
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), params)
    frames, height, width = config.num_frames, config.height, config.width
    block = min(frames, programs.window(config))
    # A device holds its frames of a short clip, and all of a long one, whose windows it computes.
    by_frames, spec = P(None, "frame"), programs.encoders.spec
    clip_spec = P() if block < frames else by_frames
    noise = shaped(programs.latent_shape(frames, height, width), spec=clip_spec)
    input_ids = shaped((1, spec.tokens), jnp.int32)
    text = shaped((1, spec.tokens, spec.text_width))
    step_index, scale, key = shaped((), jnp.int32), shaped(()), shaped((), jax.random.key(0).dtype)
    calls, features = {"encode_text": AbstractCall((params, input_ids), {})}, None
    if config.pose.path is not None:
        pose_images = shaped((1, block, height, width, 3), spec=by_frames)
        calls["encode_pose"] = AbstractCall((params, pose_images), {})
        encode = programs.pose_encoder.apply
        maps: Any = jax.eval_shape(encode, {"params": params["pose_encoder"]}, pose_images)
        features = [shaped((1, frames, *x.shape[2:]), x.dtype, clip_spec) for x in maps]
    static = {name: getattr(config, name) for name in STEP_PARAMS}
    history = (noise,) * solvers.history_length(config.solver)
    if block == frames:
        args = params, noise, history, step_index, text, text, features, scale, key
        calls["denoise"] = AbstractCall(args, static)
    else:
        group = 1 if mesh is None else mesh.shape["data"]
        guided = {"pose_guidance": static.pop("pose_guidance")}
        windows = shaped((group,), jnp.int32), shaped((group, block)), step_index
        args = params, noise, noise, *windows, text, text, features, scale
        calls["add_key_window"] = AbstractCall((*args, None), guided)
        add = functools.partial(SamplingPrograms.add_key_window, programs, **guided)
        key_frame = jax.tree.map(lambda x: shaped(x.shape, x.dtype), jax.eval_shape(add, *args, None)[1])
        calls["add_windows"] = AbstractCall((*args, key_frame), guided)
        calls["solve"] = AbstractCall((noise, history, noise, step_index, key), static)
    latents = shaped(programs.latent_shape(block, height, width), spec=clip_spec)
    calls["decode"] = AbstractCall((params, latents), {"chunk": config.decode_chunk_size})
    return calls


def lower(programs: SamplingPrograms, name: str, call: AbstractCall) -> jax.stages.Lowered:
    """A program, traced for a call and not yet compiled."""
    return getattr(SamplingPrograms, name).lower(programs, *call.args, **call.static)
