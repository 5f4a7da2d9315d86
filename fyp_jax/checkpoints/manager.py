"""Orbax checkpoints: a folder with one subfolder for each saved step. FOLDER/STEP/ holds these items:

inference/   arrays {"unet": ..., "pose_encoder": ...}: all that sampling needs beside a pipeline folder, in
             the dtype that they were saved in; also "vae" and "text_encoder" where training changed them
config/      JSON: sizes of the UNet, provenance of the weights, and the config of the run
train/       arrays that steps change: trainable parameters, their moving average, optimizer state, counters
data/        JSON: position of the data iterator
checksums/   JSON: what the other items hold, so that a byte that changes later is noticed (`checksums`)

`save_inference` writes no `train` and no `data`; a training run writes all. Orbax writes a step under a
temporary name and renames it when it is complete. FOLDER may be in a bucket (`gs://...`).
"""

import logging
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from fyp_jax.errors import UserError

# Orbax logs each of its actions, and with every error that it raises a traceback of its thread.
logging.getLogger("absl").setLevel(logging.CRITICAL)

Folder = str | Path | epath.Path
ORBAX_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError)


class CheckpointError(UserError):
    """A checkpoint cannot be written or read; the message opens with its path."""


class Damaged(CheckpointError):  # noqa: N818  (names the fact)
    """What is wrong with a step. Who reads the step opens the message with its path."""


def resolve_step(folder: epath.Path, step: int | None = None) -> int:
    """The given step, or the latest for None. Raises CheckpointError where the folder does not have it."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    latest = latest_step(folder)
    if latest is None:
        raise CheckpointError(f"{folder}: no checkpoint in it (no subfolder is named by a step number)")
    if step is not None and not (folder / str(step)).is_dir():
        raise CheckpointError(f"{folder}: has no step {step} (the latest is {latest})")
    return latest if step is None else step


def latest_step(folder: epath.Path) -> int | None:
    """The largest step number that a subfolder has, or None."""
    return max((int(path.name) for path in folder.iterdir() if path.name.isdigit()), default=None)


def make_folder(folder: Folder) -> epath.Path:
    """Make the folder of a checkpoint. Raises CheckpointError.

    Orbax would make it too, but where that fails its threads wait for minutes.
    """
    try:
        epath.Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder}: this folder cannot be created ({error.strerror})") from error
    return epath.Path(folder)


def _absolute(folder: Folder) -> epath.Path:
    """The absolute path, which Orbax needs; a path with a scheme (`gs://`) is absolute already."""
    return epath.Path(folder) if "://" in str(folder) else epath.Path(folder).absolute()


def open_manager(folder: Folder, create: bool, **options: Any) -> ocp.CheckpointManager:
    """Orbax's manager of the steps in a folder, with a handler for each item; a context manager."""
    handlers = {
        "inference": ocp.StandardCheckpointHandler(),
        "train": ocp.StandardCheckpointHandler(),
        "config": ocp.JsonCheckpointHandler(),
        "data": ocp.JsonCheckpointHandler(),
        "checksums": ocp.JsonCheckpointHandler(),
    }
    return ocp.CheckpointManager(
        _absolute(folder),
        item_handlers=handlers,
        options=ocp.CheckpointManagerOptions(create=create, **options),
    )
