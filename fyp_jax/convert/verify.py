"""What was exported, run beside the weights that it was exported from.

Both sides get the same numbers, rounded to the exported dtype, and compute in float32. PyTorch's diffusers
runs what it has a model for; the video UNet of the published form, for which it has none, runs here after it
was read back.
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

from fyp_jax.convert.export_formats import EXPORT_FORMATS, STABLE_DIFFUSION, checkpoint_name
from fyp_jax.convert.followyourpose_checkpoint import read_followyourpose
from fyp_jax.convert.lazy import Weights, as_bytes, read_tree
from fyp_jax.convert.native_safetensors import read_native
from fyp_jax.convert.pipeline_folder import PipelineFolder
from fyp_jax.convert.torch_files import open_weights
from fyp_jax.convert.weight_writer import MANIFEST
from fyp_jax.models.encoders import ENCODERS
from fyp_jax.models.execution import ExecutionConfig
from fyp_jax.models.pose_encoder import DOWNSCALE, PoseEncoder
from fyp_jax.models.unet import TEMPORAL, UNet3D, UNet3DConfig

log = logging.getLogger(__name__)

TOLERANCE = 1e-4
FRAMES = 2
TIMESTEP = 501
TOKENS = 77


class Difference(NamedTuple):
    what: str
    largest: float
    """Between two outputs, relative to the largest number in them; infinite where one is not finite."""


def verify(
    form: str, folder: Path, weights: Weights, pipeline: PipelineFolder | None, dtype: DTypeLike
) -> Iterator[Difference]:
    """The differences between what `folder` holds and the weights, one for each output that is compared.

    Raises UserError where a file cannot be read. Without torch or diffusers' PyTorch models, only files and
    what runs here are compared, with a warning.
    """
    yield Difference("checksums of arrays", _checksums(folder))
    with_torch = find_spec("torch") is not None
    if not with_torch:
        log.warning("%s: torch is not installed, so PyTorch's side is not run", form)
    ours = _rounded(weights.models, dtype)
    if form == "safetensors":
        read_back = _noise(*read_native(folder)[:2])
        yield Difference("noise of a clip, read back", _relative(read_back, _noise(weights.config, ours)))
    if form.startswith("followyourpose") and (with_torch or form.endswith("-safetensors")):
        published = folder / checkpoint_name(weights)
        read_back = _noise(weights.config, read_followyourpose(published, None, weights.config))
        yield Difference("noise of a clip, read back", _relative(read_back, _noise(weights.config, ours)))
    if with_torch and form == "diffusers-t2i-adapter":
        yield Difference("pose maps, by PyTorch", _t2i_adapter(folder, weights.config, ours))
    if with_torch and pipeline is not None and EXPORT_FORMATS[form].wants_pipeline:
        below = folder / STABLE_DIFFUSION if form.startswith("followyourpose") else folder
        yield from _image_pipeline(below, weights.config, ours, pipeline, dtype)


def _rounded(tree: Mapping[str, Any], dtype: DTypeLike) -> dict[str, Any]:
    """As float32, with no more digits than `dtype` has."""
    return jax.tree.map(lambda x: np.asarray(x, np.float32), read_tree(tree, dtype))


def _checksums(folder: Path) -> float:
    """0 where every array of every file is what `conversion.json` says, else infinite."""
    same = True
    for name, arrays in json.loads((folder / MANIFEST).read_text())["files"].items():
        # Narrow floats of a pickle come as float32, and are compared by what the models make of it.
        for array, stored in open_weights(folder / name).items():
            if stored.dtype.name == arrays[array]["dtype"]:
                same &= zlib.crc32(as_bytes(stored.read())) == arrays[array]["crc32"]
    return 0.0 if same else float("inf")


def _relative(found: Any, expected: Any) -> float:
    found, expected = np.asarray(found, np.float32), np.asarray(expected, np.float32)
    difference = np.abs(found - expected).max() / np.abs(expected).max()
    return float(difference) if np.isfinite(difference) else float("inf")


def _drawn(what: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(what.encode())).standard_normal(shape).astype(np.float32)


def _skeleton(config: UNet3DConfig, frames: int) -> np.ndarray:
    """[1 frames H W 3] in [0, 1], of the least size that a model takes."""
    side = DOWNSCALE * 2 ** (len(config.block_out_channels) - 1)
    return np.clip(_drawn("skeleton", (1, frames, side, side, 3)), 0, 1)


def _latents(config: UNet3DConfig, frames: int) -> np.ndarray:
    side = 2 ** (len(config.block_out_channels) - 1)
    return _drawn("latents", (1, frames, side, side, config.in_channels))


@functools.partial(jax.jit, static_argnames="config")
def _unet(config: UNet3DConfig, params: Any, latents: Any, text: Any, features: Any) -> Any:
    timestep = jnp.full(len(latents), TIMESTEP)
    return UNet3D(config, ExecutionConfig()).apply({"params": params}, latents, timestep, text, features)


@functools.partial(jax.jit, static_argnames="config")
def _maps(config: UNet3DConfig, params: Any, skeleton: Any) -> Any:
    return PoseEncoder(config).apply({"params": params}, skeleton)


def _noise(config: UNet3DConfig, params: Mapping[str, Any]) -> Any:
    """What a video UNet predicts for a clip with poses."""
    text = _drawn("text", (1, TOKENS, config.cross_attention_dim))
    features = _maps(config, params["pose_encoder"], _skeleton(config, FRAMES))
    return _unet(config, params["unet"], _latents(config, FRAMES), text, features)


def _t2i_adapter(folder: Path, config: UNet3DConfig, ours: Mapping[str, Any]) -> float:
    import torch
    from diffusers.models.adapter import T2IAdapter

    skeleton = _skeleton(config, FRAMES)
    adapter = T2IAdapter.from_pretrained(folder, torch_dtype=torch.float32)
    with torch.no_grad():
        theirs = adapter(torch.from_numpy(rearrange(skeleton, "b f h w c -> (b f) c h w")))
    maps = _maps(config, ours["pose_encoder"], skeleton)
    pairs = zip(theirs, maps, strict=True)
    return max(_relative(x, rearrange(np.asarray(y), "b f h w c -> (b f) c h w")) for x, y in pairs)


def _image_pipeline(
    folder: Path, config: UNet3DConfig, ours: Mapping[str, Any], pipeline: PipelineFolder, dtype: DTypeLike
) -> Iterator[Difference]:
    """Text, noise and pixels of one image; our UNet with its temporal layers at 0, which leaves them out."""
    models = pipeline.latent_encoders()
    ids, _ = models.tokenize("a robot on the beach")
    latents = _latents(config, frames=1)
    text, noise, pixels = _by_pytorch(folder, ids, rearrange(latents, "b 1 h w c -> b c h w"))
    flat: dict[str, Any] = flatten_dict(ours["unet"], sep="/")
    silent = unflatten_dict(
        {path: 0 * x if TEMPORAL.search(path) else x for path, x in flat.items()}, sep="/"
    )
    our_noise = _unet(config, silent, latents, text, None)
    yield Difference("noise, by PyTorch", _relative(noise, rearrange(our_noise, "b 1 h w c -> b c h w")))
    read = pipeline.encoder_params(models, tuple(name for name in ENCODERS if name not in ours))
    params = jax.tree.map(lambda x: np.asarray(np.asarray(x, dtype), np.float32), read)
    params |= {name: ours[name] for name in ENCODERS if name in ours}
    yield Difference("text, by PyTorch", _relative(text, jax.jit(models.encode_text)(params, ids)))
    decoded = jax.jit(functools.partial(models.decode_latents, chunk=1))(params, latents)
    yield Difference("pixels, by PyTorch", _relative(pixels, rearrange(decoded, "b 1 h w c -> b c h w")))


def _by_pytorch(folder: Path, ids: np.ndarray, latents: np.ndarray) -> tuple[np.ndarray, ...]:
    """Text, noise and pixels; the models are dropped before ours compute."""
    import torch
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
    from diffusers.utils import logging as diffusers_logging

    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    safe = any((folder / "unet").glob("*.safetensors"))
    theirs = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, use_safetensors=safe)
    image = torch.from_numpy(latents.copy())
    with torch.no_grad():
        text = theirs.text_encoder(torch.from_numpy(ids).long())[0]
        noise = theirs.unet(image, TIMESTEP, text).sample
        pixels = theirs.vae.decode(image / theirs.vae.config.scaling_factor).sample
    return text.numpy(), noise.numpy(), pixels.numpy()
