"""A whole Stable Diffusion so small that its gradient compiles in seconds, and a state to train it from."""

import functools
import json
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from fyp_jax.checkpoints.inference import inference_shapes
from fyp_jax.convert.lazy import to_lazy_tree
from fyp_jax.convert.pipeline_folder import PARTS_WITH_WEIGHTS, PipelineFolder, pipeline_state_dicts
from fyp_jax.convert.weight_writer import MANIFEST, WeightWriter
from fyp_jax.data.ingest.ingest import ingest
from fyp_jax.diffusion.schedule import ScheduleConfig
from fyp_jax.media.writing import write_mp4, write_png
from fyp_jax.models.encoders import LatentEncoders
from fyp_jax.models.execution import ExecutionConfig
from fyp_jax.models.pose_encoder import PoseEncoder
from fyp_jax.models.random_params import random_params
from fyp_jax.models.unet import UNet3D, UNet3DConfig
from fyp_jax.parallel.mesh import shard_params
from fyp_jax.pipeline.config import SampleConfig
from fyp_jax.training.losses import Models
from fyp_jax.training.stages import STAGES
from fyp_jax.training.state import TrainState, init_state
from fyp_jax.types import Batch

TOKENIZER = Path(str(resources.files("fyp_jax"))) / "assets" / "models" / "sd14" / "tokenizer"
LEVELS = 4
UNET = UNet3DConfig(
    block_out_channels=[16, 32],
    down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
    up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
    layers_per_block=1,
    cross_attention_dim=8,
    attention_head_dim=2,
    norm_num_groups=2,
)
VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * LEVELS,
    "up_block_types": ["UpDecoderBlock2D"] * LEVELS,
    "block_out_channels": [8] * LEVELS,
    "layers_per_block": 1,
    "norm_num_groups": 2,
}
TEXT_ENCODER = {
    "vocab_size": 514,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 77,
}


def sample_config(folder: Path, **fields: Any) -> SampleConfig:
    """A config that samples from its models with random weights; its pipeline goes into the folder."""
    pretrained = str(write_pipeline(folder))
    return SampleConfig(pretrained=pretrained, random_init=True, guidance_scale=2.0, **fields)


def write_pipeline(folder: Path, unet: UNet3DConfig = UNET) -> Path:
    """Its configs as a pipeline folder without weights, for `pretrained=... random_init=true`."""
    configs = {
        "vae/config.json": VAE,
        "text_encoder/config.json": {**TEXT_ENCODER, "hidden_size": unet.cross_attention_dim},
        "unet/config.json": unet.to_json(),
        "scheduler/scheduler_config.json": {"beta_schedule": "scaled_linear", "steps_offset": 1},
    }
    for name, values in configs.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(values))
    shutil.copytree(TOKENIZER, folder / "tokenizer")
    return folder


def untrained(shapes: dict[str, Any]) -> dict[str, Any]:
    """Random UNet and pose encoder, whose temporal layers are untrained: the last kernel of each is 0."""
    flat = flatten_dict(random_params(shapes, seed=3), sep="/")
    return unflatten_dict(
        {path: 0 * x if "conv_temporal/up" in path else x for path, x in flat.items()}, sep="/"
    )


def write_with(
    pipeline: PipelineFolder, params: dict[str, Any], folder: Path, config_changes: dict[str, Any]
) -> None:
    """Write a pipeline folder with the configs of another one, changed by `config_changes`, and with the
    parameters `params` (vae, text_encoder, unet)."""
    weights = pipeline_state_dicts({part: to_lazy_tree(params[part]) for part in PARTS_WITH_WEIGHTS})
    plan = pipeline.export_plan(weights, config_changes)
    WeightWriter().write_folder(plan, folder, {"pipeline": pipeline.name}, overwrite=True)


def write_weights(pipeline: Path, folder: Path) -> Path:
    """A pipeline folder with the configs of another, and with random weights."""
    whole = PipelineFolder(str(pipeline), parts=())
    unet = whole.unet_config()
    params = random_params(inference_shapes(unet) | whole.latent_encoders().spec.shapes, seed=4)
    write_with(whole, params, folder, {})
    (folder / MANIFEST).unlink()  # tests put weights of their own into the folder
    return folder


def write_videos(folder: Path, count: int, frames: int = 24, side: int = 64) -> Path:
    """Records of videos in which a square moves, each in a colour of its own, as `ingest` makes them."""
    source = folder / "videos"
    rows = ["file_name,text"]
    for i in range(count):
        red = 40 * i % 256
        clip = np.zeros((frames, side, side, 3), np.uint8)
        for frame in range(frames):
            clip[frame, 8 : 8 + side // 2, frame : frame + side // 2] = (red, 255 - red, 128)
        write_mp4(source / f"{i}.mp4", clip, 8)
        rows.append(f"{i}.mp4,square number {i}")
    (source / "metadata.csv").write_text("\n".join(rows) + "\n")
    return ingest("captioned_videos", source, folder / "records").folder


def write_images(folder: Path, count: int, side: int = 64) -> Path:
    """Records of images of a square, each in a colour of its own, with a skeleton in the same place."""
    source = folder / "images"
    rows = ["file_name,text,skeleton"]
    for i in range(count):
        red = 40 * i % 256
        image, skeleton = np.zeros((2, side, side, 3), np.uint8)
        place = (slice(8, 8 + side // 2), slice(4 * i, 4 * i + side // 2))
        image[place], skeleton[place] = (red, 255 - red, 128), (255, 0, red)
        write_png(source / f"{i}.png", image)
        write_png(source / f"{i}.pose.png", skeleton)
        rows.append(f"{i}.png,square number {i},{i}.pose.png")
    (source / "metadata.csv").write_text("\n".join(rows) + "\n")
    return ingest("pose_images", source, folder / "records").folder


@functools.cache
def encoders() -> LatentEncoders:
    return LatentEncoders.build(VAE, TEXT_ENCODER, TOKENIZER)


def models(stage: str, execution: ExecutionConfig) -> Models:
    pose_encoder = PoseEncoder(UNET) if STAGES[stage].uses_pose else None
    return Models(encoders(), ScheduleConfig(), UNet3D(UNET, execution), pose_encoder)


def params(parts: Models) -> dict[str, Any]:
    """Parameters by path. No kernel is 0, so that no gradient is 0 for that reason."""
    return flatten_dict(random_params(inference_shapes(UNET) | parts.encoders.spec.shapes, seed=0), sep="/")


def state(models: Models, stage: str, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    arrays = params(models)
    trained = STAGES[stage].trains(arrays)
    parts = [{path: x for path, x in arrays.items() if trained[path] is k} for k in (True, False)]
    trainable, frozen = (shard_params(part, mesh) for part in parts)
    return init_state(trainable, frozen, optimizer, use_ema=False, mesh=mesh)


def batch(stage: str, clips: int, frames: int, side: int = 32) -> Batch:
    rng = np.random.default_rng(0)
    video = rng.uniform(-1, 1, (clips, frames, side, side, 3)).astype(np.float32)
    input_ids = rng.integers(0, 512, (clips, 77)).astype(np.int32)
    pose_images = rng.uniform(0, 1, video.shape).astype(np.float32) if STAGES[stage].uses_pose else None
    return Batch(video, input_ids, pose_images)


def stop_signals(mesh: Mesh) -> jax.Array:
    return jnp.zeros(mesh.size, jnp.int32)
