"""The programs of a run, with shapes in place of arrays: the training step, and what sampling is made of."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, SingleDeviceSharding

from fyp_jax import parallel, trees
from fyp_jax.checkpoint import inference_shapes
from fyp_jax.config import SampleConfig
from fyp_jax.convert.pipeline_folder import PipelineFolder
from fyp_jax.errors import UserError
from fyp_jax.flops import count_products, gradient_flops, total_flops
from fyp_jax.models.compute import Compute
from fyp_jax.models.pose_encoder import DOWNSCALE, PoseEncoder
from fyp_jax.models.unet import UNet3D
from fyp_jax.sampling import Sampler
from fyp_jax.training.config import TrainConfig
from fyp_jax.training.objectives import OBJECTIVES, Draws, Networks
from fyp_jax.training.optimizer import make_optimizer
from fyp_jax.training.stages import stage
from fyp_jax.training.start import start_shapes
from fyp_jax.training.state import state_shapes
from fyp_jax.training.step import configured_step
from fyp_jax.types import Batch

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


def own_sizes(pretrained: str) -> tuple[str, str | None]:
    """The name of a folder with the sizes of `pretrained`, and what to tell the user if it is another one."""
    if pretrained in SD14:
        return "sd14", f"{pretrained}: only shapes are needed, taken from our own sizes, pretrained=sd14"
    return pretrained, None


def training_programs(config: TrainConfig, mesh: Mesh) -> list[Program]:
    """The step of a config on a mesh. Raises UserError as a run would."""
    config.check()
    this_stage, frames = stage(config.stage), config.data.frames
    shares = mesh.shape["data"] * mesh.shape["fsdp"]
    if config.data.batch_size % shares:
        raise UserError(f"data.batch_size={config.data.batch_size} is not a multiple of {shares} (data times fsdp)")
    if frames % mesh.shape["frame"]:
        raise UserError(f"data.frames={frames} is not a multiple of mesh.frame={mesh.shape['frame']}")
    frame_axis = "frame" if mesh.shape["frame"] > 1 else None
    networks, trainable, frozen = start_shapes(config, this_stage, frame_axis)
    optimizer = make_optimizer(config.optimizer, config.steps)
    state = state_shapes(trainable, frozen, optimizer, config.optimizer.ema is not None)
    batch = batch_shapes(config, networks, config.data.batch_size)
    votes = jax.ShapeDtypeStruct((mesh.size,), jnp.int32)

    def lower() -> jax.stages.Lowered:
        step: Any = configured_step(config, networks, mesh, state)
        return step.lower(state, batch, votes)

    needed = config.data.batch_size * _needed_for_a_clip(config)
    return [Program("step", lower, 1, needed, 0)]


def batch_shapes(config: TrainConfig, networks: Networks, clips: int) -> Batch:
    """What the loader of a run gives, for so many clips."""
    data = config.data
    video = jax.ShapeDtypeStruct((clips, data.frames, data.height, data.width, 3), jnp.float32)
    length = networks.frozen.tokenize("")[0].shape[1]
    skeleton = None if networks.pose_encoder is None else video
    return Batch(video, jax.ShapeDtypeStruct((clips, length), jnp.int32), skeleton)  # pyright: ignore


def _needed_for_a_clip(config: TrainConfig) -> int:
    """FLOPs of loss and gradient of one clip, nothing computed twice."""
    this_stage = stage(config.stage)
    plain = dataclasses.replace(config, remat="none")
    networks, trainable, frozen = start_shapes(plain, this_stage, None)
    batch = batch_shapes(plain, networks, 1)
    _, frames, height, width, _ = batch.video.shape
    down, channels = networks.frozen.downscale, networks.unet.config.in_channels
    latents = jax.ShapeDtypeStruct((1, frames, height // down, width // down, channels), jnp.float32)
    draws = Draws(jax.ShapeDtypeStruct((1,), jnp.int32), latents, latents)  # pyright: ignore

    def loss(trainable: Mapping[str, Any], frozen: Mapping[str, Any], batch: Batch, draws: Draws) -> jax.Array:
        params = trees.unflatten({**trainable, **frozen})
        return OBJECTIVES[this_stage.objective](networks, params, batch, draws).sum()

    return gradient_flops(loss, trainable, frozen, batch, draws)


def sampling_programs(config: SampleConfig, device: Any) -> list[Program]:
    """The four programs that make one clip with a pose (or three without) on a device."""
    folder = PipelineFolder(config.pretrained, parts=())
    frozen, unet_config, dtype = folder.frozen_models(), folder.unet_config(), jnp.dtype(config.dtype)
    models = UNet3D(unet_config, Compute(dtype)), PoseEncoder(unet_config, dtype)
    sampler = Sampler(frozen, folder.schedule(), *models)
    sharding = SingleDeviceSharding(device)

    def shaped(shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    own, theirs = inference_shapes(unet_config), frozen.shapes()
    params = jax.tree.map(lambda leaf: shaped(leaf.shape, dtype), own)
    params |= jax.tree.map(lambda leaf: shaped(leaf.shape), theirs)
    frames, height, width = config.pose.frames, config.height, config.width
    noise = shaped((1, frames, height // DOWNSCALE, width // DOWNSCALE, unet_config.in_channels))
    ids = shaped(frozen.tokenize("")[0].shape, jnp.int32)
    text = shaped((*ids.shape, frozen.text_width))
    key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=sharding)
    features = None
    if config.pose.path is not None:
        skeleton = shaped((1, frames, height, width, 3))
        encoded = jax.eval_shape(sampler.encode_pose, params, skeleton)
        features = [shaped(leaf.shape, leaf.dtype) for leaf in encoded]
    steps = {"steps": config.steps, "eta": config.eta, "on_step": None}

    def program(name: str, runs: int, part: str, *args: Any, **static: Any) -> Program:
        function = functools.partial(getattr(Sampler, name).lower, sampler, params, *args, **static)
        counted = functools.partial(getattr(Sampler, name), sampler, **static)
        beside = sum(_bytes(leaf) for other in params if other != part for leaf in jax.tree.leaves(params[other]))
        return Program(name, function, runs, total_flops(count_products(counted, params, *args)), beside)

    found = [program("encode_text", 2, "text_encoder", ids)]
    if features is not None:
        found.append(program("encode_pose", 1, "pose_encoder", skeleton))
    found.append(program("denoise", 1, "unet", noise, text, text, features, shaped(()), key, **steps))
    found.append(program("decode", 1, "vae", noise, chunk=config.decode_frames))
    return found


def _bytes(leaf: Any) -> int:
    return leaf.size * leaf.dtype.itemsize


def training_mesh(config: TrainConfig, devices: Any) -> Mesh:
    """The mesh of a run on these devices."""
    return parallel.make_mesh(config.mesh, devices)
