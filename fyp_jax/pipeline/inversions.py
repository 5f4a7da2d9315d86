"""Inverted clips: the noise from which a pipeline makes about a clip again, in files and from a config.

Tune-A-Video samples from them, so that a new clip keeps motion and layout of the one that it was tuned on.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from einops import rearrange
from jaxtyping import Float32

from fyp_jax.convert.lazy import LazyArray
from fyp_jax.convert.torch_files import PICKLE_SUFFIXES
from fyp_jax.convert.torch_load import read_pickle
from fyp_jax.errors import UserError, reason, wrap_write_errors
from fyp_jax.media.clips import find_clip, read_clip
from fyp_jax.media.images import Frames
from fyp_jax.pipeline.config import SampleConfig
from fyp_jax.pipeline.pipeline import FollowYourPosePipeline

INVERSIONS = "inv_latents"
"""Folder of the inversions of a run, with the name that Tune-A-Video gives it."""
INVERSION_PROMPT = ""
"""Tune-A-Video inverts with the empty prompt, without guidance."""
SUFFIXES = (".npz", *PICKLE_SUFFIXES)


class InvertedLatents(NamedTuple):
    """An inverted clip."""

    latents: Float32[np.ndarray, "f h w c"]
    num_inference_steps: int | None
    """DDIM steps that it took, and that sampling has to take; None where the file does not say it."""
    weights_crc32: int | None = None
    """Checksum of the weights that inverted it; None where the file does not say it."""
    schedule: str | None = None
    """The noise schedule, with what the UNet predicts, as text; None where the file does not say it."""


def is_inversion(file: Path) -> bool:
    """Whether a file holds an inversion, by its name, and not a clip."""
    return file.suffix in SUFFIXES


def save_inversion(file: Path, inversion: InvertedLatents) -> None:
    """Write an .npz file that `read_inversion` reads. Raises UserError where it cannot be written."""
    with wrap_write_errors(file) as path, path.open("wb") as out:
        arrays = {"latents": inversion.latents, "num_inference_steps": inversion.num_inference_steps or 0}
        if inversion.weights_crc32 is not None:
            arrays["weights_crc32"] = inversion.weights_crc32
        if inversion.schedule is not None:
            arrays["schedule"] = np.array(inversion.schedule)
        np.savez(out, **arrays)  # pyright: ignore[reportArgumentType]


def read_inversion(file: Path) -> InvertedLatents:
    """An .npz file of ours, or `inv_latents/ddim_latent-N.pt` of Tune-A-Video, one tensor [1 c f h w].

    Nothing that a pickle holds is run. Raises UserError for another file.
    """
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    return _check_finite(file, _read_npz(file) if file.suffix == ".npz" else _read_tensor(file))


def _read_tensor(file: Path) -> InvertedLatents:
    tensor = read_pickle(file)
    if not isinstance(tensor, LazyArray) or len(tensor.shape) != 5 or tensor.shape[0] != 1:
        found = list(tensor.shape) if isinstance(tensor, LazyArray) else type(tensor).__name__
        raise UserError(f"{file}: not the inverted latents of one clip, a tensor [1 c f h w] (found {found})")
    latents = tensor.read().astype(np.float32)
    return InvertedLatents(np.ascontiguousarray(rearrange(latents, "1 c f h w -> f h w c")), None)


def _read_npz(file: Path) -> InvertedLatents:
    try:
        with np.load(file, allow_pickle=False) as arrays:
            latents, steps = np.asarray(arrays["latents"]), int(arrays["num_inference_steps"])
            crc32 = int(arrays["weights_crc32"]) if "weights_crc32" in arrays else None
            schedule = str(arrays["schedule"]) if "schedule" in arrays else None
    except Exception as error:  # a damaged archive raises whatever its bytes happen to call for
        raise UserError(
            f"{file}: not an inversion that train.py or sample.py wrote ({reason(error)})"
        ) from error
    if latents.ndim != 4 or latents.dtype != np.float32:
        raise UserError(f"{file}: not the inverted latents of one clip, float32 [f h w c]")
    return InvertedLatents(latents, steps or None, crc32, schedule)


def _check_finite(file: Path, inversion: InvertedLatents) -> InvertedLatents:
    if not np.all(np.isfinite(inversion.latents)):
        raise UserError(f"{file}: holds latents that are not finite")
    return inversion


def read_source(config: SampleConfig, pipeline: FollowYourPosePipeline) -> InvertedLatents | Frames | None:
    """What `config.invert` names: an inversion, or the frames of a clip that is still to be inverted.

    A clip is taken with the stride and start of the config, or else of the run that tuned the weights on it.
    Raises UserError where the file cannot be read, the clip is too short, or the inversion has another size,
    another number of steps, other weights or another noise schedule.
    """
    if config.invert is None:
        return None
    file = find_clip(config.invert)
    if not is_inversion(file):
        tuned_on = pipeline.weights.get("provenance", {}).get("clip", {})
        stride = config.invert_stride or tuned_on.get("stride", 1)
        start = tuned_on.get("start", 0) if config.invert_start is None else config.invert_start
        size = {name: getattr(config, name) for name in ("num_frames", "height", "width")}
        return read_clip(file, stride=stride, start=start, **size)
    inversion = read_inversion(file)
    if inversion.num_inference_steps not in (None, config.num_inference_steps):
        raise UserError(
            f"{file}: was inverted in {inversion.num_inference_steps} steps; give "
            f"num_inference_steps={inversion.num_inference_steps} and not {config.num_inference_steps}"
        )
    crc32 = pipeline.weights.get("crc32")
    if None not in (crc32, inversion.weights_crc32) and crc32 != inversion.weights_crc32:
        raise UserError(
            f"{file}: was inverted with other weights; give the clip itself, which is inverted anew"
        )
    if inversion.schedule not in (None, repr(pipeline.programs.schedule)):
        raise UserError(
            f"{file}: was inverted with another noise schedule or prediction_type; give the clip itself, "
            "which is inverted anew"
        )
    expected = pipeline.programs.latent_shape(config.num_frames, config.height, config.width)[1:]
    if inversion.latents.shape != expected:
        raise UserError(
            f"{file}: latents [f h w c] of {list(inversion.latents.shape)}, but this model's are "
            f"{list(expected)} for num_frames={config.num_frames} height={config.height} width={config.width}"
        )
    return inversion
