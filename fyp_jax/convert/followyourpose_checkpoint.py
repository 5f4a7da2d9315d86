"""Reads published Follow Your Pose checkpoints: a video UNet and its pose encoder, in one file or two.

The pose encoder may also be a T2I-Adapter of PyTorch's diffusers.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from fyp_jax.convert.folders import find_folder
from fyp_jax.convert.hub import download_files, find_file, parse_hub_name
from fyp_jax.convert.recognise import FATEZERO, FATEZERO_ARRAYS
from fyp_jax.convert.safetensors_files import MANIFEST
from fyp_jax.convert.t2i_adapter import from_t2i, is_t2i, read_t2i_folder
from fyp_jax.convert.torch_files import (
    WEIGHT_SUFFIXES,
    WeightsError,
    find_weights,
    has_weights,
    read_weights,
    weight_formats,
)
from fyp_jax.convert.torch_key_mapping import POSE_PREFIX, from_torch
from fyp_jax.convert.weight_writer import index_name
from fyp_jax.errors import UserError
from fyp_jax.models.encoders import ENCODERS
from fyp_jax.models.unet_config import UNet3DConfig

log = logging.getLogger(__name__)

POSE_ENCODER = "pose_encoder"
POSE_ENCODER_FILES = tuple(
    name
    for file in (f"{POSE_ENCODER}.safetensors", f"{POSE_ENCODER}.pth")
    for name in (file, index_name(file))
)


def find_checkpoint(name: str) -> Path:
    """The folder of a published checkpoint, or of native safetensors.

    `name` is a path, or OWNER/NAME or OWNER/NAME/FOLDER of the Hub; of these the weights are downloaded, as
    safetensors where there are some. A path is given back whether it is there or not. Raises UserError.
    """
    path = Path(name).expanduser()
    hub = None if path.exists() else parse_hub_name(name)
    if hub is None:
        return path
    inside = PurePosixPath(hub.file or ".")
    # The pose encoder's file is in the folder or beside it, and is small.
    pose = [str(place / f"{POSE_ENCODER}*") for place in (inside, inside.parent)]
    native = [f"{model}*.safetensors*" for model in ("unet", *ENCODERS)]
    folder = path
    for weight_format in weight_formats():
        names = [*weight_format.files, *weight_format.shards, *native]
        patterns = [MANIFEST, *pose, *(str(inside / file) for file in names)]
        folder = download_files(name, patterns, f"{name}: no such folder") / inside
        if has_weights(folder) or any(folder.glob("unet*.safetensors")):
            return folder
    raise WeightsError(f"{name}: no weights there in the Hub repository (offline: in its local cache)")


def find_pose_encoder(name: str) -> Path:
    """The path of a pose encoder: of a weight file, or of a T2I-Adapter's folder. `name` is a path, or a file
    or repository of the Hub. Raises UserError where there is none."""
    path = Path(name)
    if path.exists() or path.suffix in WEIGHT_SUFFIXES:
        return find_file(name)
    return find_folder(name, (".",))


def read_followyourpose(
    folder: Path | None, pose_file: Path | None, config: UNet3DConfig, variant: str | None = None
) -> dict[str, Any]:
    """The models that the files hold, {"unet": ..., "pose_encoder": ...}, checked against `config`.

    `folder` is a folder `checkpoint-N`, or None for a pose encoder alone. The pose encoder comes from
    `pose_file` (a file, or the folder of a T2I-Adapter), else from `pose_encoder.pth` in `folder` or beside
    it, else from the UNet's file. So a separate file takes precedence over the UNet's file, as in the
    published sampling code. Raises WeightsError where a file cannot be read, TreeMismatch where it does not
    fit `config`.
    """
    state_dict: dict[str, np.ndarray] = {}
    if folder is not None:
        if not folder.is_dir():
            raise WeightsError(f"{folder}: no such folder")
        state_dict = read_weights(find_weights(folder, variant))
        if any(re.search(FATEZERO_ARRAYS, name) for name in state_dict):
            raise UserError(f"{folder}: {FATEZERO}; only Follow Your Pose's and Tune-A-Video's are read")
        candidates = [parent / name for parent in (folder, folder.parent) for name in POSE_ENCODER_FILES]
        pose_file = pose_file or next((file for file in candidates if file.is_file()), None)
        if pose_file is None and not any(name.startswith(POSE_PREFIX) for name in state_dict):
            raise WeightsError(f"{folder}: no pose encoder in the UNet's file, and no pose_encoder.pth")
    if pose_file is not None:
        pose = read_t2i_folder(pose_file, config) if pose_file.is_dir() else read_weights(pose_file)
        if is_t2i(pose):
            pose = from_t2i(pose, config)
        prefixed = {POSE_PREFIX + name.removeprefix(POSE_PREFIX): value for name, value in pose.items()}
        state_dict = _replace_pose(state_dict, prefixed, pose_file)
    return from_torch(state_dict, config) if state_dict else {}


def _replace_pose(
    state_dict: Mapping[str, np.ndarray], pose: Mapping[str, np.ndarray], pose_file: Path
) -> dict[str, np.ndarray]:
    replaced = {name: value for name, value in state_dict.items() if name.startswith(POSE_PREFIX)}
    if replaced and not all(
        name in pose and np.array_equal(value, pose[name]) for name, value in replaced.items()
    ):
        log.warning("the UNet's file holds another pose encoder than %s; the latter is used", pose_file)
    return {name: value for name, value in state_dict.items() if name not in replaced} | dict(pose)
