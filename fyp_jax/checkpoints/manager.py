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
import re
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from fyp_jax import trees
from fyp_jax.convert.recognise import describe_deepspeed
from fyp_jax.errors import UserError

# Orbax logs each of its actions, and with every error that it raises a traceback of its thread.
logging.getLogger("absl").setLevel(logging.CRITICAL)

Folder = str | Path | epath.Path
RUN_CHECKPOINTS = "checkpoints"
"""Name of the folder of checkpoints in the folder of a run."""
STEP_NAME = re.compile(r"0|[1-9][0-9]*")
"""Name of one step's folder. The runs of sample.py have other names: 0000, 0001."""
ORBAX_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError)
GIGABYTES_IN_FLIGHT = 2
"""How much of a step Orbax compresses and writes at a time. Each thread keeps what it had at most, so without
a limit a process grows with every step."""


class CheckpointError(UserError):
    """A checkpoint cannot be written or read; the message opens with its path."""


class Damaged(CheckpointError):  # noqa: N818  (names the fact)
    """What is wrong with a step. Who reads the step opens the message with its path."""


def resolve_step(folder: Folder, step: int | None = None) -> tuple[epath.Path, int]:
    """The folder of steps, and the step, that a user means by `folder`: a folder of steps, a run's folder
    with `checkpoints/` in it, or one step's folder.

    `step` None means the latest, or the one that `folder` names. Raises CheckpointError where there is no
    such step; the message lists those that are there.
    """
    path = epath.Path(folder)
    if not path.is_dir():
        hint = " (it is a file; a single file is given as pretrained=FILE)" if path.exists() else ""
        raise CheckpointError(f"{folder}: no such folder{hint}")
    if latest_step(path) is None and latest_step(path / RUN_CHECKPOINTS) is not None:
        path /= RUN_CHECKPOINTS
    elif latest_step(path) is None and any((path / item).is_dir() for item in ("inference", "config")):
        name = _absolute(path).name
        if not STEP_NAME.fullmatch(name):
            raise CheckpointError(f"{folder}: one step of a checkpoint; name the folder by its step number")
        if step not in (None, int(name)):
            raise CheckpointError(f"{folder}: is step {name}, not step {step}; leave one of them out")
        path, step = _absolute(path).parent, int(name)
    steps = _steps(path)
    if not steps:
        raise CheckpointError(
            f"{folder}: no checkpoint in it (no subfolder is named by a step number){_hint(path)}"
        )
    if step is not None and step not in steps:
        found = trees.list_names([str(each) for each in reversed(steps)])
        raise CheckpointError(f"{folder}: has no step {step} (there are: {found})")
    return path, steps[-1] if step is None else step


def _hint(folder: epath.Path) -> str:
    """What a folder without steps is, where that can be seen."""
    names = [path.name for path in folder.iterdir()]
    if "model_index.json" in names:
        return "; it is a pipeline folder: give it as pretrained=FOLDER"
    what = None if "://" in str(folder) else describe_deepspeed(Path(folder))
    if what is not None:
        return f"; it is {what}"
    if any(name.endswith((".bin", ".safetensors")) for name in names):
        return "; it holds PyTorch weights: scripts/import_pytorch.py makes a checkpoint of them"
    return ""


def latest_step(folder: epath.Path) -> int | None:
    """The largest step number that a subfolder has, or None."""
    return max(_steps(folder), default=None)


def _steps(folder: epath.Path) -> list[int]:
    """The step numbers that subfolders have, from the smallest; none where there is no such folder."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if STEP_NAME.fullmatch(path.name))


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
        "inference": ocp.StandardCheckpointHandler(save_concurrent_gb=GIGABYTES_IN_FLIGHT),
        "train": ocp.StandardCheckpointHandler(save_concurrent_gb=GIGABYTES_IN_FLIGHT),
        "config": ocp.JsonCheckpointHandler(),
        "data": ocp.JsonCheckpointHandler(),
        "checksums": ocp.JsonCheckpointHandler(),
    }
    return ocp.CheckpointManager(
        _absolute(folder),
        item_handlers=handlers,
        options=ocp.CheckpointManagerOptions(create=create, **options),
    )
