"""Published Follow Your Pose checkpoints: a video UNet and its pose encoder, in one file or two.

The pose encoder may also be a T2I-Adapter of PyTorch's diffusers.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fyp_jax.convert.pipeline_folder import find_folder
from fyp_jax.convert.t2i_adapter import from_t2i, is_t2i, read_t2i_folder
from fyp_jax.convert.torch_files import WEIGHT_SUFFIXES, WeightsError, find_weights, read_weights
from fyp_jax.convert.torch_key_mapping import POSE_PREFIX, from_torch
from fyp_jax.convert.weight_writer import index_name
from fyp_jax.models.unet_config import UNet3DConfig

log = logging.getLogger(__name__)

POSE_ENDINGS = (".safetensors", ".pth")
POSE_FILES = tuple(
    name for ending in POSE_ENDINGS for name in (f"pose_encoder{ending}", index_name(f"pose_encoder{ending}"))
)


def find_pose_encoder(name: str) -> Path:
    """A weight file, or the folder of a T2I-Adapter, which may be a Hub id. Raises UserError."""
    path = Path(name)
    return path if path.exists() or path.suffix in WEIGHT_SUFFIXES else find_folder(name, (".",))


def read_followyourpose(folder: Path | None, pose_file: Path | None, config: UNet3DConfig) -> dict[str, Any]:
    """{"unet": ..., "pose_encoder": ...}, as far as the files have them, checked against `config`.

    `folder` is a `checkpoint-N`; the pose encoder is `pose_file` (the folder of a T2I-Adapter, too), else
    the `pose_encoder.pth` in the folder or beside it, else what the UNet's file holds of it. A pose encoder
    of its own wins over the one in the UNet's file, as in the published sampling. Raises WeightsError and
    TreeMismatch.
    """
    state_dict: dict[str, np.ndarray] = {}
    if folder is not None:
        if not folder.is_dir():
            raise WeightsError(f"{folder}: no such folder")
        state_dict = read_weights(find_weights(folder))
        beside = [place / name for place in (folder, folder.parent) for name in POSE_FILES]
        pose_file = pose_file or next((file for file in beside if file.is_file()), None)
        if pose_file is None and not any(name.startswith(POSE_PREFIX) for name in state_dict):
            raise WeightsError(f"{folder}: no pose encoder, in the UNet's file or as pose_encoder.pth")
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
    inside = {name: value for name, value in state_dict.items() if name.startswith(POSE_PREFIX)}
    if inside and not all(
        name in pose and np.array_equal(value, pose[name]) for name, value in inside.items()
    ):
        log.warning("the UNet's file holds another pose encoder than %s, which is taken", pose_file)
    return {name: value for name, value in state_dict.items() if name not in inside} | dict(pose)
