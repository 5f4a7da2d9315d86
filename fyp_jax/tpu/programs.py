"""The programs of a run, with shapes in place of arrays: the training step, and what sampling is made of."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict
from jax.sharding import NamedSharding, SingleDeviceSharding

from fyp_jax.checkpoints.inference import inference_shapes
from fyp_jax.compiled import Fingerprint
from fyp_jax.config import SampleConfig
from fyp_jax.convert.pipeline_folder import PipelineFolder
from fyp_jax.models import attention
from fyp_jax.parallel.mesh import AXES, check_divisible, make_mesh, parameter_spec
from fyp_jax.pipeline.pipeline import (
    AbstractCall,
    FollowYourPosePipeline,
    make_sampler,
    sampling_fingerprint,
    sampling_mesh,
    used_devices,
)
from fyp_jax.tpu.flops import count_products, gradient_flops, total_flops
from fyp_jax.training.config import TrainConfig
from fyp_jax.training.init import start_shapes
from fyp_jax.training.losses import OBJECTIVES, Models, NoiseSample
from fyp_jax.training.optimizer import make_optimizer
from fyp_jax.training.stages import stage
from fyp_jax.training.state import state_shapes
from fyp_jax.training.step import configured_step, train_step_fingerprint
from fyp_jax.types import Batch, Params

PART = {"encode_text": "text_encoder", "encode_pose": "pose_encoder", "denoise": "unet", "decode": "vae"}
"""Whose parameters a program of sampling uses; the others stand by."""

SD14 = ("CompVis/stable-diffusion-v1-4", "CompVis/stable-diffusion-v1-5", "runwayml/stable-diffusion-v1-5")
"""Hub ids of models that have the sizes of our `sd14`."""


class Program(NamedTuple):
    """One compiled function of a run."""

    name: str
    lower: Callable[[], jax.stages.Lowered]
    runs: int
    """How often it runs for a step, or for a clip."""
    needed: int
    """FLOPs of matrix products and convolutions that the maths needs in one run, on all devices together."""
    beside: int
    """Bytes on each device that are held while it runs, and are no argument of it."""


class Programs(NamedTuple):
    """What a config compiles to on some devices."""

    programs: list[Program]
    devices: int
    """That share the work."""
    fingerprint: Fingerprint
    """What `compiled=FILE` compares (fyp_jax.compiled)."""


def own_sizes(pretrained: str) -> tuple[str, str | None]:
    """The name of a folder with the sizes of `pretrained`, and what to tell the user if it is another one."""
    if pretrained in SD14:
        return "sd14", f"{pretrained}: only shapes are needed, taken from our own sizes, pretrained=sd14"
    return pretrained, None


def training_programs(
    config: TrainConfig, devices: Sequence[Any], plain: bool = False, donate: bool | None = None
) -> Programs:
    """The step of a config. Raises UserError as a run would.

    `plain`: written as one would at first, all of the UNet (and of the pose encoder) trained, in float32,
    nothing computed again, nothing donated (but with `donate`), and all scores of an attention at once.
    """
    config.check()
    mesh, this_stage = make_mesh(config.mesh, devices), stage(config.stage)
    check_divisible(config.data.batch_size, config.data.num_frames, mesh)
    needed = config.data.batch_size * _needed_for_a_clip(config)
    if plain:
        config = dataclasses.replace(config, dtype="float32", frozen_dtype="float32", remat="none")
        trained = (r"(unet|pose_encoder)/.*",) if this_stage.uses_pose else (r"unet/.*",)
        frozen_parts = (r"(vae|text_encoder)/.*",) if this_stage.uses_pose else (r"(?!unet/).*",)
        this_stage = dataclasses.replace(this_stage, trained=trained, frozen=frozen_parts)
    donate = not plain if donate is None else donate
    frame_axis = "frame" if mesh.shape["frame"] > 1 else None
    models, trainable, frozen = start_shapes(config, this_stage, frame_axis)
    optimizer = make_optimizer(config.optimizer, config.steps)
    state = state_shapes(trainable, frozen, optimizer, config.optimizer.ema is not None)
    batch = batch_shapes(config, models, config.data.batch_size)
    votes = jax.ShapeDtypeStruct((mesh.size,), jnp.int32)

    def lower() -> jax.stages.Lowered:
        step: Any = configured_step(
            config, models, mesh, state, donate=not plain if donate is None else donate
        )
        with plain_attention() if plain else contextlib.nullcontext():
            return step.lower(state, batch, votes)

    fingerprint = train_step_fingerprint(config, models, mesh)
    return Programs([Program("step", lower, 1, needed, 0)], mesh.size, fingerprint)


@contextlib.contextmanager
def plain_attention() -> Iterator[None]:
    """While it is open, attention is traced as softmax(q k^T / sqrt(d)) v, all groups and heads at once."""

    def blockwise_attention(
        q: jax.Array, keys: Sequence[jax.Array], values: Sequence[jax.Array]
    ) -> jax.Array:
        k, v = (attention.concat_kv(parts, q.shape[1]) for parts in (keys, values))
        scores = jnp.einsum("gfnhd,gfmhd->gfhnm", q, k) * q.shape[-1] ** -0.5
        return jnp.einsum("gfhnm,gfmhd->gfnhd", jax.nn.softmax(scores, axis=-1), v)

    ours, attention.blockwise_attention = attention.blockwise_attention, blockwise_attention
    try:
        yield
    finally:
        attention.blockwise_attention = ours


def batch_shapes(config: TrainConfig, models: Models, clips: int) -> Batch:
    """What the loader of a run gives, for so many clips."""
    data = config.data
    video = jax.ShapeDtypeStruct((clips, data.num_frames, data.height, data.width, 3), jnp.float32)
    length = models.frozen.tokenize("")[0].shape[1]
    pose_images = None if models.pose_encoder is None else video
    return Batch(video, jax.ShapeDtypeStruct((clips, length), jnp.int32), pose_images)  # pyright: ignore


def _needed_for_a_clip(config: TrainConfig) -> int:
    """FLOPs of loss and gradient of one clip, nothing computed twice."""
    this_stage = stage(config.stage)
    plain = dataclasses.replace(config, remat="none")
    models, trainable, frozen = start_shapes(plain, this_stage, None)
    batch = batch_shapes(plain, models, 1)
    _, frames, height, width, _ = batch.video.shape
    down, channels = models.frozen.spec.downscale, models.unet.config.in_channels
    latents = jax.ShapeDtypeStruct((1, frames, height // down, width // down, channels), jnp.float32)
    noise_sample = NoiseSample(jax.ShapeDtypeStruct((1,), jnp.int32), latents, latents)  # pyright: ignore

    def loss(trainable: Params, frozen: Params, batch: Batch, noise_sample: NoiseSample) -> jax.Array:
        params = unflatten_dict({**trainable, **frozen}, sep="/")
        return OBJECTIVES[this_stage.objective](models, params, batch, noise_sample).sum()

    with plain_attention():
        return gradient_flops(loss, trainable, frozen, batch, noise_sample)


def sampling_programs(config: SampleConfig, devices: Sequence[Any], plain: bool = False) -> Programs:
    """The programs that make one clip, with a pose or without, on a config's mesh; `plain` as for a step."""
    if plain:
        config = dataclasses.replace(config, dtype="float32", decode_chunk_size=config.pose.frames)
    folder, mesh = PipelineFolder(config.pretrained, parts=()), sampling_mesh(config, devices)
    frozen, unet_config = folder.latent_encoders(), folder.unet_config()
    sampler = make_sampler(config, frozen, folder.schedule(), unet_config, mesh)
    # The same, as if there were one device: how much there is to do.
    alone = make_sampler(config, frozen, folder.schedule(), unet_config, None)
    used = used_devices(mesh, devices)
    runs = {"encode_text": 2, "denoise": config.steps}

    def stored(leaf: Any, dtype: Any) -> jax.ShapeDtypeStruct:
        if mesh is None:
            return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=SingleDeviceSharding(devices[0]))
        spec = parameter_spec(leaf.shape, mesh, AXES)
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=NamedSharding(mesh, spec))

    own, theirs = inference_shapes(unet_config), frozen.spec.shapes
    params = jax.tree.map(lambda leaf: stored(leaf, config.dtype), own)
    params |= jax.tree.map(lambda leaf: stored(leaf, jnp.float32), theirs)

    def program(name: str, call: AbstractCall) -> Program:
        def lower() -> jax.stages.Lowered:
            with plain_attention() if plain else contextlib.nullcontext():
                return sampler.lower(name, call)

        # Not the jitted function itself: what is traced here must not be found in its cache.
        counted = functools.partial(getattr(FollowYourPosePipeline, name).__wrapped__, alone, **call.static)
        with plain_attention():
            flops = total_flops(count_products(counted, *call.args))
        others = {part: tree for part, tree in call.args[0].items() if part != PART[name]}
        beside = sum(_bytes_on_a_device(leaf) for leaf in jax.tree.leaves(others))
        return Program(name, lower, runs.get(name, 1), flops, beside)

    found = [program(name, call) for name, call in sampler.calls(config, params, used).items()]
    return Programs(found, len(used), sampling_fingerprint(config, sampler, used))


def _bytes_on_a_device(leaf: jax.ShapeDtypeStruct) -> int:
    shape = leaf.sharding.shard_shape(leaf.shape)  # pyright: ignore[reportOptionalMemberAccess]
    return math.prod(shape) * leaf.dtype.itemsize
