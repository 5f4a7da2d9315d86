"""The programs of a run, with shapes in place of arrays: the training step, and the programs of sampling."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict
from jax.sharding import NamedSharding, SingleDeviceSharding

from fyp_jax.checkpoints.inference import inference_shapes, open_inference
from fyp_jax.compilation_cache import Fingerprint
from fyp_jax.convert.delta_weights import read_delta_provenance
from fyp_jax.convert.open_pipeline import open_pipeline, options_of
from fyp_jax.convert.pipeline_folder import PipelineFolder
from fyp_jax.convert.video_pipeline import video_provenance
from fyp_jax.models.attention_functions import plain_attention
from fyp_jax.models.layer_forms import LayerForms, choose_layer_forms
from fyp_jax.parallel.mesh import AXES, check_divisible, make_mesh, parameter_spec
from fyp_jax.pipeline.abstract_calls import AbstractCall, abstract_calls, lower
from fyp_jax.pipeline.config import SampleConfig
from fyp_jax.pipeline.edit_config import EditConfig
from fyp_jax.pipeline.params import trained_frames
from fyp_jax.pipeline.programs import (
    SamplingPrograms,
    make_programs,
    sampling_fingerprint,
)
from fyp_jax.pipeline.sampling_mesh import devices_of, sampling_mesh
from fyp_jax.pipeline.styles import open_styles
from fyp_jax.pipeline.windows import make_windows, window_starts
from fyp_jax.tpu.edit_programs import edit_calls
from fyp_jax.tpu.flops import count_products, gradient_flops, total_flops
from fyp_jax.training.config import TrainConfig
from fyp_jax.training.gradient import AnyBatch
from fyp_jax.training.init import initial_shapes
from fyp_jax.training.losses import Models, NoiseSample, loss_of
from fyp_jax.training.optimizer import make_optimizer
from fyp_jax.training.stages import get_stage
from fyp_jax.training.state import state_shapes
from fyp_jax.training.step import configured_step, train_step_fingerprint
from fyp_jax.types import Batch, LatentBatch, Params

MODEL_OF_PROGRAM = {
    "encode_text": "text_encoder",
    "encode_pose": "pose_encoder",
    "denoise": "unet",
    "add_key_window": "unet",
    "add_windows": "unet",
    "decode": "vae",
}
"""The model whose parameters a program of sampling uses, if it uses any; the others stay in memory beside
it."""

SD14 = ("CompVis/stable-diffusion-v1-4", "CompVis/stable-diffusion-v1-5", "runwayml/stable-diffusion-v1-5")
"""Hub ids of models that have the sizes of the bundled `sd14`."""

BASELINE_FORMS = LayerForms(plain_attention)
"""All scores of an attention at once, and XLA's convolutions: what FLOPs are counted on, and the baseline."""


class Program(NamedTuple):
    """One compiled function of a run."""

    name: str
    lower: Callable[[], jax.stages.Lowered]
    runs: int
    """How often it runs for a step, or for a clip."""
    model_flops: int
    """FLOPs of matrix products and convolutions of one run that the model needs, on all devices together."""
    resident_bytes: int
    """Bytes on each device that stay in memory while it runs, and are no argument of it."""


class Programs(NamedTuple):
    """What a config compiles to on some devices."""

    programs: list[Program]
    devices: int
    """Number of devices that run them together."""
    fingerprint: Fingerprint
    """What `aot_path=FILE` compares (fyp_jax.compilation_cache)."""


def bundled_sizes(pretrained: str) -> tuple[str, str | None]:
    """The name of a folder with the sizes of `pretrained`, and a note for the user if that is another one."""
    if pretrained in SD14:
        return (
            "sd14",
            f"{pretrained}: only shapes are needed; they come from the bundled sizes, pretrained=sd14",
        )
    return pretrained, None


def training_programs(
    config: TrainConfig, devices: Sequence[Any], baseline: bool = False, donate: bool | None = None
) -> Programs:
    """The step of a config. Raises UserError as a run would.

    With `baseline`, the step is written as one would write it at first: all of the UNet (and of the pose
    encoder) is trained, in float32, nothing is rematerialised, nothing is donated (unless `donate`), and
    attention computes all scores at once.
    """
    config.check()
    mesh, stage = make_mesh(config.mesh, devices), get_stage(config.stage)
    check_divisible(config.data.batch_size, config.data.num_frames, mesh)
    model_flops = config.data.batch_size * _model_flops_per_clip(config)
    if baseline:
        config = dataclasses.replace(config, dtype="float32", frozen_dtype="float32", remat="none")
        trainable_models = r"(unet|pose_encoder)/.*" if stage.uses_pose else r"unet/.*"
        stage = dataclasses.replace(stage, trainable=(trainable_models,))
    donate = not baseline if donate is None else donate
    forms = _layer_forms(config, devices, baseline)
    frame_axis = "frame" if mesh.shape["frame"] > 1 else None
    models, trainable, frozen = initial_shapes(config, stage, frame_axis, forms)
    optimizer = make_optimizer(config.optimizer, config.num_train_steps)
    state = state_shapes(trainable, frozen, optimizer, config.optimizer.ema_decay is not None)
    batch = batch_shapes(config, models, config.data.batch_size)
    stop_signals = jax.ShapeDtypeStruct((mesh.size,), jnp.int32)

    def lower() -> jax.stages.Lowered:
        step: Any = configured_step(config, models, mesh, state, donate=donate)
        return step.lower(state, batch, stop_signals)

    fingerprint = train_step_fingerprint(config, models, mesh)
    return Programs([Program("step", lower, 1, model_flops, 0)], mesh.size, fingerprint)


def batch_shapes(config: TrainConfig, models: Models, clips: int) -> AnyBatch:
    """Shapes of a batch of so many clips, as the loader of a run gives it."""
    data, spec = config.data, models.encoders.spec
    video: Any = jax.ShapeDtypeStruct((clips, data.num_frames, *data.clip_size, 3), jnp.float32)
    poses = None if models.pose_encoder is None else video
    input_ids: Any = jax.ShapeDtypeStruct((clips, spec.tokens), jnp.int32)
    batch = Batch(video, input_ids, poses)
    if not models.cached_latents:
        return batch
    grid = *batch.latent_size(spec.downscale), spec.latent_channels
    mean: Any = jax.ShapeDtypeStruct((clips, data.num_frames, *grid), jnp.float32)
    text: Any = jax.ShapeDtypeStruct((clips, spec.tokens, spec.text_width), jnp.float32)
    return LatentBatch(mean, mean, text, poses)


def _provenance(config: SampleConfig, folder: PipelineFolder) -> dict[str, Any]:
    """What is known of the weights of a config; no weights are read."""
    if config.random_init:
        return {}
    if config.checkpoint is not None:
        return open_inference(config.checkpoint, config.step).provenance
    return video_provenance(folder) or read_delta_provenance(folder)


def sampling_programs(config: SampleConfig, devices: Sequence[Any], baseline: bool = False) -> Programs:
    """The programs that make one clip, with a pose or without, on a config's mesh; `baseline` as for a
    step.

    For a config of scripts/edit.py, the steps of inversion and edit come after those of sampling, so that one
    table shows both.
    """
    if baseline:
        config = dataclasses.replace(config, dtype="float32", decode_chunk_size=config.num_frames)
    if isinstance(config, EditConfig):  # edits take a clip whole, and so does the sampling beside them
        config = dataclasses.replace(config, window=config.num_frames)
    folder = open_pipeline(config.pretrained, (), options_of(config))
    encoders = open_styles(config).encoders(folder.latent_encoders())
    parts = encoders, folder.schedule(), folder.unet_config()
    forms = _layer_forms(config, devices, baseline)
    frames = trained_frames(_provenance(config, folder))
    mesh = sampling_mesh(config, devices, frames)
    programs = make_programs(config, *parts, mesh, forms, frames)
    # The same programs on one device: what the model needs is counted on these.
    on_one_device = make_programs(config, *parts, None, BASELINE_FORMS, frames)
    used = devices_of(mesh, devices)
    runs = {"encode_text": 2, "denoise": config.num_inference_steps, "solve": config.num_inference_steps}
    if config.num_frames > (window := programs.window(config)):
        group = 1 if mesh is None else mesh.shape["data"]
        windows = functools.partial(
            make_windows, config.num_frames, window, config.window_overlap, group=group
        )
        groups = [len(windows(step_index=i).starts) for i in range(config.num_inference_steps)]
        runs |= {"add_key_window": len(groups), "add_windows": sum(groups) - len(groups)}
        runs |= dict.fromkeys(("encode_pose", "decode"), len(window_starts(config.num_frames, window)))

    def placed(leaf: Any, dtype: Any) -> jax.ShapeDtypeStruct:
        if mesh is None:
            return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=SingleDeviceSharding(devices[0]))
        sharding = NamedSharding(mesh, parameter_spec(leaf.shape, mesh, AXES))
        return jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding)

    params = jax.tree.map(lambda leaf: placed(leaf, config.dtype), inference_shapes(parts[2]))
    params |= jax.tree.map(lambda leaf: placed(leaf, jnp.float32), parts[0].spec.shapes)

    def program(name: str, call: AbstractCall) -> Program:
        # The function inside of the jitted one: what is traced here must not come from its cache.
        function = functools.partial(
            getattr(SamplingPrograms, name).__wrapped__, on_one_device, **call.static
        )
        model_flops = total_flops(count_products(function, *call.args))
        others = {part: tree for part, tree in params.items() if part != MODEL_OF_PROGRAM.get(name)}
        resident = sum(_bytes_on_a_device(leaf) for leaf in jax.tree.leaves(others))
        lowered = functools.partial(lower, programs, name, call)
        return Program(name, lowered, runs.get(name, 1), model_flops, resident)

    found = [program(name, call) for name, call in abstract_calls(programs, config, params, used).items()]
    if isinstance(config, EditConfig):
        others = [tree for part, tree in params.items() if part != "unet"]
        resident = sum(_bytes_on_a_device(leaf) for leaf in jax.tree.leaves(others))
        for name, (step, denoiser, call) in edit_calls(config, programs, params["unet"], used).items():
            alone = denoiser._replace(unet=on_one_device.unet, mesh=None)
            flops = total_flops(
                count_products(functools.partial(step.__wrapped__, alone, **call.static), *call.args)
            )
            lowered = functools.partial(step.lower, denoiser, *call.args, **call.static)
            found.append(Program(name, lowered, config.num_inference_steps, flops, resident))
    return Programs(found, len(used), sampling_fingerprint(config, programs, used))


def _layer_forms(config: TrainConfig | SampleConfig, devices: Sequence[Any], baseline: bool) -> LayerForms:
    """What a run of the config would choose on these devices, or the forms of the baseline."""
    if baseline:
        return BASELINE_FORMS
    platform, kind = devices[0].platform, devices[0].device_kind
    return choose_layer_forms(config.attention_implementation, config.dtype, platform, kind)


def _model_flops_per_clip(config: TrainConfig) -> int:
    """FLOPs of loss and gradient of one clip, without rematerialisation."""
    stage = get_stage(config.stage)
    config = dataclasses.replace(config, remat="none")
    models, trainable, frozen = initial_shapes(config, stage, None, BASELINE_FORMS)
    batch = batch_shapes(config, models, 1)
    grid = *batch.latent_size(models.encoders.spec.downscale), models.unet.config.in_channels
    latents = jax.ShapeDtypeStruct((1, batch.num_frames, *grid), jnp.float32)
    noise_sample = NoiseSample(jax.ShapeDtypeStruct((1,), jnp.int32), latents, latents)  # pyright: ignore

    def loss(trainable: Params, frozen: Params, batch: AnyBatch, noise_sample: NoiseSample) -> jax.Array:
        params = unflatten_dict({**trainable, **frozen}, sep="/")
        return loss_of(stage.loss, models)(models, params, batch, noise_sample).sum()

    return gradient_flops(loss, trainable, frozen, batch, noise_sample)


def _bytes_on_a_device(leaf: jax.ShapeDtypeStruct) -> int:
    shape = leaf.sharding.shard_shape(leaf.shape)  # pyright: ignore[reportOptionalMemberAccess]
    return math.prod(shape) * leaf.dtype.itemsize
