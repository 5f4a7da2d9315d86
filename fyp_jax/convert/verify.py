"""Verifies exported weights: both they and the original weights are run on the same inputs, and compared.

The original weights are rounded to the exported dtype; all models compute in float32. Exported weights run in
PyTorch's diffusers if it has a model for them. It has none for the video UNet, which is read back and runs in
JAX.
"""

import functools
import json
import logging
import zlib
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike

from fyp_jax.convert.delta_weights import read_delta_weights
from fyp_jax.convert.export_formats import EXPORT_FORMATS, STABLE_DIFFUSION, checkpoint_name
from fyp_jax.convert.followyourpose_checkpoint import read_followyourpose
from fyp_jax.convert.lazy import Weights, as_bytes, read_tree
from fyp_jax.convert.native_safetensors import read_native
from fyp_jax.convert.pipeline_folder import PipelineFolder
from fyp_jax.convert.published_code import VERSION, names_not_taken
from fyp_jax.convert.torch_files import WeightsError, open_weights
from fyp_jax.convert.video_pipeline import read_video_pipeline
from fyp_jax.convert.weight_writer import MANIFEST
from fyp_jax.models.encoders import ENCODERS
from fyp_jax.models.execution import ExecutionConfig
from fyp_jax.models.pose_encoder import DOWNSCALE, PoseEncoder
from fyp_jax.models.unet import TEMPORAL, UNet3D, UNet3DConfig
from fyp_jax.trees import list_names

log = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""Largest relative error of an export that is correct."""
FRAMES = 2
TIMESTEP = 501
TOKENS = 77


class Comparison(NamedTuple):
    """Result of the comparison of one output."""

    output: str
    error: float
    """Largest absolute difference over the largest absolute value; infinite for a non-finite output."""


def verify(
    format_name: str, folder: Path, weights: Weights, pipeline: PipelineFolder | None, dtype: DTypeLike
) -> Iterator[Comparison]:
    """Compare the export in `folder` with the weights; one result for each output.

    Raises UserError where a file cannot be read. Without torch, a warning says that only checksums and the
    models that run in JAX are compared.
    """
    yield Comparison("checksums of arrays", _checksum_error(folder))
    with_torch = find_spec("torch") is not None
    if not with_torch:
        log.warning("%s: torch is not installed, so PyTorch models are not compared", format_name)
    params = _rounded(weights.models, dtype)
    if format_name == "tuneavideo":
        yield Comparison(*_names_taken(folder))
    if format_name.startswith("followyourpose"):
        yield Comparison(*_names_taken(folder / STABLE_DIFFUSION))
    read_back = _read_back(format_name, folder, weights, with_torch)
    if read_back is not None:
        compared = {"unet": params["unet"]} if format_name == "tuneavideo" else params
        expected = _clip_noise(weights.config, compared)
        yield Comparison("noise of a clip, read back", _error(_clip_noise(*read_back), expected))
    if with_torch and format_name == "diffusers-t2i-adapter":
        yield Comparison("pose features in PyTorch", _t2i_adapter_error(folder, weights.config, params))
    has_image_unet = EXPORT_FORMATS[format_name].needs_pipeline and format_name != "tuneavideo"
    if with_torch and pipeline is not None and has_image_unet:
        exported = folder / STABLE_DIFFUSION if format_name.startswith("followyourpose") else folder
        yield from _image_pipeline(exported, weights.config, params, pipeline, dtype)


def _read_back(
    format_name: str, folder: Path, weights: Weights, with_torch: bool
) -> tuple[UNet3DConfig, dict[str, Any]] | None:
    """Config and parameters of an exported video UNet; None for an export without one, and for pickles where
    torch is missing."""
    if format_name == "safetensors":
        return read_native(folder)[:2]
    if format_name == "pipeline":
        parts = read_delta_weights(PipelineFolder(str(folder), ()))
        assert parts is not None  # else the export left them out
        return parts[:2]
    if format_name == "tuneavideo" and with_torch:
        video = read_video_pipeline(PipelineFolder(str(folder), ()))
        assert video is not None  # else the export wrote an image UNet
        return video
    if format_name.startswith("followyourpose") and (with_torch or format_name.endswith("-safetensors")):
        return weights.config, read_followyourpose(folder / checkpoint_name(weights), None, weights.config)
    return None


def _rounded(tree: Mapping[str, Any], dtype: DTypeLike) -> dict[str, Any]:
    """Nested arrays that are rounded to `dtype`, as float32."""
    return jax.tree.map(lambda x: np.asarray(x, np.float32), read_tree(tree, dtype))


def _checksum_error(folder: Path) -> float:
    """0 if every array of every file has the checksum in `conversion.json`, else infinite."""
    same = True
    for name, arrays in json.loads((folder / MANIFEST).read_text())["files"].items():
        # Pickles give 16-bit floats as float32; these arrays are checked by the outputs of the models alone.
        for array, lazy in open_weights(folder / name).items():
            if lazy.dtype.name == arrays[array]["dtype"]:
                try:
                    same &= zlib.crc32(as_bytes(lazy.read())) == arrays[array]["crc32"]
                except WeightsError:  # safetensors compare by themselves
                    same = False
    return 0.0 if same else float("inf")


def _names_taken(folder: Path) -> tuple[str, float]:
    """0 if diffusers 0.11.1 takes all names of arrays and config keys, else infinite, with some of them."""
    unknown = list(names_not_taken(folder))
    what = f"names and config keys for diffusers {VERSION}"
    return (f"{what}, which has no {list_names(unknown)}", float("inf")) if unknown else (what, 0.0)


def _error(found: Any, expected: Any) -> float:
    found, expected = np.asarray(found, np.float32), np.asarray(expected, np.float32)
    difference = np.abs(found - expected).max() / np.abs(expected).max()
    return float(difference) if np.isfinite(difference) else float("inf")


def _random_normal(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)


def _pose_images(config: UNet3DConfig, frames: int) -> np.ndarray:
    """Random pose images [1 frames H W 3] in [0, 1], of the smallest size that the model takes."""
    side = DOWNSCALE * 2 ** (len(config.block_out_channels) - 1)
    return np.clip(_random_normal("skeleton", (1, frames, side, side, 3)), 0, 1)


def _latents(config: UNet3DConfig, frames: int) -> np.ndarray:
    side = 2 ** (len(config.block_out_channels) - 1)
    return _random_normal("latents", (1, frames, side, side, config.in_channels))


@functools.partial(jax.jit, static_argnames="config")
def _unet(config: UNet3DConfig, params: Any, latents: Any, text: Any, features: Any) -> Any:
    timestep = jnp.full(len(latents), TIMESTEP)
    return UNet3D(config, ExecutionConfig()).apply({"params": params}, latents, timestep, text, features)


@functools.partial(jax.jit, static_argnames="config")
def _pose_features(config: UNet3DConfig, params: Any, pose_images: Any) -> Any:
    return PoseEncoder(config).apply({"params": params}, pose_images)


def _clip_noise(config: UNet3DConfig, params: Mapping[str, Any]) -> Any:
    """The noise that the video UNet predicts for a clip, with poses if the parameters have a pose encoder."""
    text = _random_normal("text", (1, TOKENS, config.cross_attention_dim))
    features = None
    if "pose_encoder" in params:
        features = _pose_features(config, params["pose_encoder"], _pose_images(config, FRAMES))
    return _unet(config, params["unet"], _latents(config, FRAMES), text, features)


def _t2i_adapter_error(folder: Path, config: UNet3DConfig, params: Mapping[str, Any]) -> float:
    """The largest error of a feature map of the exported adapter."""
    import torch
    from diffusers.models.adapter import T2IAdapter

    pose_images = _pose_images(config, FRAMES)
    adapter = T2IAdapter.from_pretrained(folder, torch_dtype=torch.float32)
    with torch.no_grad():
        found = adapter(torch.from_numpy(rearrange(pose_images, "b f h w c -> (b f) c h w")))
    expected = _pose_features(config, params["pose_encoder"], pose_images)
    pairs = zip(found, expected, strict=True)
    return max(_error(x, rearrange(np.asarray(y), "b f h w c -> (b f) c h w")) for x, y in pairs)


def _image_pipeline(
    folder: Path, config: UNet3DConfig, params: Mapping[str, Any], pipeline: PipelineFolder, dtype: DTypeLike
) -> Iterator[Comparison]:
    """Compare noise, text embeddings and pixels of one image.

    The video UNet gets temporal layers whose parameters are 0, which have no effect.
    """
    models = pipeline.latent_encoders()
    ids, _ = models.tokenize("a robot on the beach")
    latents = _latents(config, frames=1)
    text, noise, pixels = _run_torch_pipeline(folder, ids, rearrange(latents, "b 1 h w c -> b c h w"))
    flat: dict[str, Any] = flatten_dict(params["unet"], sep="/")
    image_unet = unflatten_dict(
        {path: 0 * x if TEMPORAL.search(path) else x for path, x in flat.items()}, sep="/"
    )
    expected = _unet(config, image_unet, latents, text, None)
    yield Comparison("noise in PyTorch", _error(noise, rearrange(expected, "b 1 h w c -> b c h w")))
    read = pipeline.encoder_params(models, tuple(name for name in ENCODERS if name not in params))
    encoder_params = jax.tree.map(lambda x: np.asarray(np.asarray(x, dtype), np.float32), read)
    encoder_params |= {name: params[name] for name in ENCODERS if name in params}
    yield Comparison(
        "text embeddings in PyTorch", _error(text, jax.jit(models.encode_text)(encoder_params, ids))
    )
    decoded = jax.jit(functools.partial(models.decode_latents, chunk=1))(encoder_params, latents)
    yield Comparison("pixels in PyTorch", _error(pixels, rearrange(decoded, "b 1 h w c -> b c h w")))


def _run_torch_pipeline(folder: Path, ids: np.ndarray, latents: np.ndarray) -> tuple[np.ndarray, ...]:
    """Text embeddings, noise and pixels of the exported pipeline, whose models are freed on return."""
    import torch
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    use_safetensors = any((folder / "unet").glob("*.safetensors"))
    pipeline = StableDiffusionPipeline.from_pretrained(
        folder, torch_dtype=torch.float32, use_safetensors=use_safetensors
    )
    image = torch.from_numpy(latents.copy())
    with torch.no_grad():
        text = pipeline.text_encoder(torch.from_numpy(ids).long())[0]
        noise = pipeline.unet(image, TIMESTEP, text).sample
        pixels = pipeline.vae.decode(image / pipeline.vae.config.scaling_factor).sample
    return text.numpy(), noise.numpy(), pixels.numpy()
