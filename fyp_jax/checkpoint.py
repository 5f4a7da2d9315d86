"""Orbax checkpoints: `FOLDER/STEP/`, with one item for each thing that is read on its own.

inference/   {"unet": ..., "pose_encoder": ...}: what sampling needs beside a pipeline folder, in the dtype it
             was saved in; "vae" and "text_encoder" too where training did not take them from that folder
config/      JSON: sizes of the UNet, where the weights are from, and the run's config
train/       trainable parameters, optimizer moments, counters: all that changes in training
data/        JSON: where the data iterator stands

A step is written under another name and renamed when it is whole; FOLDER may be a bucket (`gs://...`).
"""

import asyncio
import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.typing import DTypeLike
from orbax.checkpoint import checkpoint_managers, type_handlers

from fyp_jax import trees
from fyp_jax.convert.stored import StoredArray, Weights
from fyp_jax.errors import UserError, reason
from fyp_jax.models.frozen import ENCODERS
from fyp_jax.models.pose_encoder import pose_encoder_shapes
from fyp_jax.models.unet import UNet3DConfig, unet_shapes

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells of every step it takes

Folder = str | Path | epath.Path
ORBAX_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError)


class CheckpointError(UserError):
    """A checkpoint that cannot be written or read; the message opens with its path."""


def inference_shapes(config: UNet3DConfig) -> dict[str, Any]:
    """Names and shapes of all that sampling needs."""
    return {"unet": unet_shapes(config), "pose_encoder": pose_encoder_shapes(config)}


def require_free(folder: Folder, step: int) -> None:
    """Raise CheckpointError where a step cannot be written: it is there already, or no number of a step."""
    if step < 0:
        raise CheckpointError(f"{folder}: a step is 0 or more, not {step}")
    if (epath.Path(folder) / str(step)).exists():
        raise CheckpointError(f"{folder}: has a step {step} already, and is not overwritten")


def save_inference(
    folder: Folder, step: int, config: UNet3DConfig, params: Mapping[str, Any], origin: Mapping[str, Any]
) -> None:
    """Write the parameters that sampling reads; `origin` says where they are from.

    Raises CheckpointError where the folder has this step already or cannot be made, TreeMismatch where the
    parameters are not those of `config`.
    """
    trees.check_same(trees.flatten(params), trees.flatten(_expected(config, params)), str(folder))
    require_free(folder, step)
    _make(folder)
    items = {
        "inference": ocp.args.StandardSave(dict(params)),
        "config": ocp.args.JsonSave({"unet": config.to_json(), "origin": dict(origin)}),
    }
    with _manager(folder, create=True) as manager:
        manager.save(step, args=ocp.args.Composite(**items))


def load_inference(
    folder: Folder, dtype: DTypeLike = jnp.float32
) -> tuple[UNet3DConfig, dict[str, Any], dict[str, Any]]:
    """The newest step of a checkpoint: sizes, parameters as `dtype`, and where they are from.

    Raises CheckpointError where there is none that can be read, TreeMismatch where the arrays are not of
    the sizes that the checkpoint itself states.
    """
    folder = epath.Path(folder)
    step = _require_step(folder)
    try:
        return _load_step(folder, step, dtype)
    except UserError:
        raise
    except ORBAX_ERRORS as error:
        raise CheckpointError(f"{folder}: step {step} is not a whole checkpoint ({reason(error)})") from error


def open_inference(folder: Folder, step: int | None = None) -> Weights:
    """What `load_inference` reads, of a step or the newest one, with its arrays still in the checkpoint.

    Each array is read whole, on whatever mesh it was written. Raises as `load_inference`, and CheckpointError
    when an array is read that cannot be.
    """
    folder = epath.Path(folder)
    step = _require_step(folder, step)
    try:
        with _manager(folder, create=False) as manager:
            saved = manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))["config"]
            found = manager.item_metadata(step)["inference"]
        config = UNet3DConfig.from_json(saved["unet"])
        if found is None:
            raise CheckpointError(f"{folder}: step {step} has no inference parameters")
        flat = trees.flatten(found.tree)
        trees.check_same(flat, trees.flatten(_expected(config, found.tree)), f"{folder}, step {step}")
        reader = _ArrayReader(f"{folder}: step {step}", next(iter(flat.values())).directory)
        models = trees.unflatten({path: reader.stored(leaf) for path, leaf in flat.items()})
        return Weights(config, models, {**saved["origin"], "step": step})
    except UserError:
        raise
    except ORBAX_ERRORS as error:
        raise CheckpointError(f"{folder}: step {step} is not a whole checkpoint ({reason(error)})") from error


def _expected(config: UNet3DConfig, found: Mapping[str, Any]) -> dict[str, Any]:
    """What an inference item has to hold; encoders, which a run may have of its own, as they are found."""
    return inference_shapes(config) | {name: tree for name, tree in found.items() if name in ENCODERS}


class _ArrayReader:
    """Reads single arrays of one item, which Orbax's own restore does only with all names of the item."""

    def __init__(self, what: str, directory: epath.Path):
        self._what = what
        self._runner = asyncio.Runner()
        self._handler = type_handlers.NumpyHandler()
        self._ocdbt = type_handlers.is_ocdbt_checkpoint(directory)
        self._context = type_handlers.get_ts_context(use_ocdbt=self._ocdbt)

    def stored(self, leaf: Any) -> StoredArray:
        info = type_handlers.ParamInfo(
            name=leaf.name,
            parent_dir=leaf.directory,
            is_ocdbt_checkpoint=self._ocdbt,
            ts_context=self._context,
        )
        return StoredArray(tuple(leaf.shape), np.dtype(leaf.dtype), lambda: self._read(info))

    def _read(self, info: type_handlers.ParamInfo) -> np.ndarray:
        arrays: list[np.ndarray] = []

        async def read() -> None:  # gives nothing back, as asyncio writes down what a task gives: slow
            arrays.extend(await self._handler.deserialize([info]))

        try:
            self._runner.run(read())
        except Exception as error:  # as above
            raise CheckpointError(f"{self._what} cannot be read whole ({reason(error)})") from error
        return arrays[0]


def _load_step(
    folder: Folder, step: int, dtype: DTypeLike
) -> tuple[UNet3DConfig, dict[str, Any], dict[str, Any]]:
    with _manager(folder, create=False) as manager:
        saved = manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))["config"]
        config = UNet3DConfig.from_json(saved["unet"])
        found = manager.item_metadata(step)["inference"]
        if found is None:
            raise CheckpointError(f"{folder}: step {step} has no inference parameters")
        shapes = _expected(config, found.tree)
        trees.check_same(trees.flatten(found.tree), trees.flatten(shapes), f"{folder}, step {step}")
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=device), shapes)
        restore = ocp.args.Composite(inference=ocp.args.StandardRestore(target))
        try:
            params = manager.restore(step, args=restore)["inference"]
        except Exception as error:  # Orbax raises no narrower class for files that are missing or cut off
            raise CheckpointError(f"{folder}: step {step} cannot be read whole ({reason(error)})") from error
        return config, params, {**saved["origin"], "step": step}


@dataclasses.dataclass(frozen=True)
class Saved:
    """What a training run goes on from."""

    step: int
    train: Any
    """The tree that was saved, each array where the target's stood."""
    data: dict[str, Any]


class TrainingCheckpoints:
    """The checkpoints of one training run, written while training goes on; a context manager.

    The last `keep` are kept, and the one with the lowest loss. All processes of a run call the same methods.
    """

    def __init__(self, folder: Folder, keep: int):
        """Raises CheckpointError where the folder cannot be made."""
        self.folder = _make(folder)
        lowest = checkpoint_managers.BestN(get_metric_fn=lambda kept: kept["loss"], reverse=True, n=1)
        policy = checkpoint_managers.AnyPreservationPolicy([checkpoint_managers.LatestN(keep), lowest])
        self._manager = _manager(folder, create=True, preservation_policy=policy)

    def __enter__(self) -> "TrainingCheckpoints":
        return self

    def __exit__(self, *_: object) -> None:
        """Wait until what was begun is written."""
        self._manager.close()

    def save(
        self,
        step: int,
        *,
        train: Any,
        inference: Mapping[str, Any],
        data: Mapping[str, Any],
        config: Mapping[str, Any],
        loss: float,
    ) -> None:
        """Copy the arrays off the devices and begin to write them; waits for the one before.

        `loss` decides which checkpoint is the best. Raises CheckpointError where the disk says no (of a
        write in the background, at the next call).
        """
        items = {
            "train": ocp.args.StandardSave(train),
            "inference": ocp.args.StandardSave(dict(inference)),
            "data": ocp.args.JsonSave(dict(data)),
            "config": ocp.args.JsonSave(dict(config)),
        }
        try:
            self._manager.save(step, args=ocp.args.Composite(**items), metrics={"loss": loss})
        except ORBAX_ERRORS as error:
            raise CheckpointError(
                f"{self.folder}: step {step} cannot be written ({reason(error)})"
            ) from error

    def restore(self, train: Any) -> Saved | None:
        """The newest step, its arrays placed as those of `train`; None where there is none.

        Raises CheckpointError where it cannot be read, TreeMismatch where it holds other arrays.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        try:
            return self._restore(step, train)
        except UserError:
            raise
        except Exception as error:  # as above
            raise CheckpointError(
                f"{self.folder}: step {step} cannot be read whole ({reason(error)}); without it, moved away, "
                "the run goes on from the one before"
            ) from error

    def _restore(self, step: int, train: Any) -> Saved:
        found = dict(self._manager.item_metadata(step).items()).get("train")
        if found is None:
            raise CheckpointError(
                f"{self.folder}: step {step} has no state to go on with; its weights are for init=FOLDER"
            )
        trees.check_same(
            _by_path(found.tree), _by_path(train), f"{self.folder}: step {step} is of another run"
        )
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, train)
        items = {"train": ocp.args.StandardRestore(target), "data": ocp.args.JsonRestore()}
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        return Saved(step, restored["train"], restored["data"])


def _by_path(tree: Any) -> dict[str, Any]:
    """Leaves of any tree by names that are the same for what Orbax makes of it (a tuple becomes a list)."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _require_step(folder: epath.Path, step: int | None = None) -> int:
    """The step that is asked for, or the newest; CheckpointError where there is none."""
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    newest = _newest(folder)
    if newest is None:
        raise CheckpointError(f"{folder}: no checkpoint in it (no folder with a step number)")
    if step is not None and not (folder / str(step)).is_dir():
        raise CheckpointError(f"{folder}: has no step {step} (the newest is {newest})")
    return newest if step is None else step


def _newest(folder: epath.Path) -> int | None:
    return max((int(path.name) for path in folder.iterdir() if path.name.isdigit()), default=None)


def _make(folder: Folder) -> epath.Path:
    """Before Orbax, whose threads would wait for minutes."""
    try:
        epath.Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder}: no folder can be made here ({error.strerror})") from error
    return epath.Path(folder)


def _absolute(folder: Folder) -> epath.Path:
    """Orbax wants absolute paths; one with a scheme (`gs://`) is one already."""
    return epath.Path(folder) if "://" in str(folder) else epath.Path(folder).absolute()


def _manager(folder: Folder, create: bool, **options: Any) -> ocp.CheckpointManager:
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
