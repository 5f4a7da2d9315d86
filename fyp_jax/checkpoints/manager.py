"""Orbax checkpoints: `FOLDER/STEP/`, with one item for each thing that is read on its own."""

import logging
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

from fyp_jax.errors import UserError

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells of every step it takes

Folder = str | Path | epath.Path
ORBAX_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError)


class CheckpointError(UserError):
    """A checkpoint that cannot be written or read; the message opens with its path."""


def require_step(folder: epath.Path, step: int | None = None) -> int:
    """The step that is asked for, or the newest; CheckpointError where there is none."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    newest = newest_step(folder)
    if newest is None:
        raise CheckpointError(f"{folder}: no checkpoint in it (no folder with a step number)")
    if step is not None and not (folder / str(step)).is_dir():
        raise CheckpointError(f"{folder}: has no step {step} (the newest is {newest})")
    return newest if step is None else step


def newest_step(folder: epath.Path) -> int | None:
    return max((int(path.name) for path in folder.iterdir() if path.name.isdigit()), default=None)


def make_folder(folder: Folder) -> epath.Path:
    """Before Orbax, whose threads would wait for minutes."""
    try:
        epath.Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder}: no folder can be made here ({error.strerror})") from error
    return epath.Path(folder)


def _absolute(folder: Folder) -> epath.Path:
    """Orbax wants absolute paths; one with a scheme (`gs://`) is one already."""
    return epath.Path(folder) if "://" in str(folder) else epath.Path(folder).absolute()


def open_manager(folder: Folder, create: bool, **options: Any) -> ocp.CheckpointManager:
    handlers = {
        "inference": ocp.StandardCheckpointHandler(),
        "train": ocp.StandardCheckpointHandler(),
        "config": ocp.JsonCheckpointHandler(),
        "data": ocp.JsonCheckpointHandler(),
    }
    return ocp.CheckpointManager(
        _absolute(folder),
        item_handlers=handlers,
        options=ocp.CheckpointManagerOptions(create=create, **options),
    )
