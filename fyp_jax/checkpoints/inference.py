"""The weights that sampling reads."""

import asyncio
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.typing import DTypeLike
from orbax.checkpoint import type_handlers

from fyp_jax import trees
from fyp_jax.checkpoints.manager import (
    ORBAX_ERRORS,
    CheckpointError,
    Folder,
    make_folder,
    open_manager,
    require_step,
)
from fyp_jax.convert.lazy import LazyArray, Weights
from fyp_jax.errors import UserError, reason
from fyp_jax.models.encoders import ENCODERS
from fyp_jax.models.pose_encoder import pose_encoder_shapes
from fyp_jax.models.unet import UNet3DConfig, unet_shapes


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
    folder: Folder, step: int, config: UNet3DConfig, params: Mapping[str, Any], provenance: Mapping[str, Any]
) -> None:
    """Write the parameters that sampling reads; `provenance` says where they are from.

    Raises CheckpointError where the folder has this step already or cannot be made, TreeMismatch where the
    parameters are not those of `config`.
    """
    trees.check_same(
        flatten_dict(params, sep="/"), flatten_dict(_expected(config, params), sep="/"), str(folder)
    )
    require_free(folder, step)
    make_folder(folder)
    items = {
        "inference": ocp.args.StandardSave(dict(params)),
        "config": ocp.args.JsonSave({"unet": config.to_json(), "provenance": dict(provenance)}),
    }
    with open_manager(folder, create=True) as manager:
        manager.save(step, args=ocp.args.Composite(**items))


def load_inference(
    folder: Folder, dtype: DTypeLike = jnp.float32
) -> tuple[UNet3DConfig, dict[str, Any], dict[str, Any]]:
    """The newest step of a checkpoint: sizes, parameters as `dtype`, and where they are from.

    Raises CheckpointError where there is none that can be read, TreeMismatch where the arrays are not of
    the sizes that the checkpoint itself states.
    """
    folder = epath.Path(folder)
    step = require_step(folder)
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
    step = require_step(folder, step)
    try:
        with open_manager(folder, create=False) as manager:
            saved = manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))["config"]
            found = manager.item_metadata(step)["inference"]
        config = UNet3DConfig.from_json(saved["unet"])
        if found is None:
            raise CheckpointError(f"{folder}: step {step} has no inference parameters")
        flat = flatten_dict(found.tree, sep="/")
        trees.check_same(flat, flatten_dict(_expected(config, found.tree), sep="/"), f"{folder}, step {step}")
        reader = _ArrayReader(f"{folder}: step {step}", next(iter(flat.values())).directory)
        models = unflatten_dict({path: reader.stored(leaf) for path, leaf in flat.items()}, sep="/")
        return Weights(config, models, {**saved["provenance"], "step": step})
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

    def stored(self, leaf: Any) -> LazyArray:
        info = type_handlers.ParamInfo(
            name=leaf.name,
            parent_dir=leaf.directory,
            is_ocdbt_checkpoint=self._ocdbt,
            ts_context=self._context,
        )
        return LazyArray(tuple(leaf.shape), np.dtype(leaf.dtype), lambda: self._read(info))

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
    with open_manager(folder, create=False) as manager:
        saved = manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))["config"]
        config = UNet3DConfig.from_json(saved["unet"])
        found = manager.item_metadata(step)["inference"]
        if found is None:
            raise CheckpointError(f"{folder}: step {step} has no inference parameters")
        shapes = _expected(config, found.tree)
        trees.check_same(
            flatten_dict(found.tree, sep="/"), flatten_dict(shapes, sep="/"), f"{folder}, step {step}"
        )
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=device), shapes)
        restore = ocp.args.Composite(inference=ocp.args.StandardRestore(target))
        try:
            params = manager.restore(step, args=restore)["inference"]
        except Exception as error:  # Orbax raises no narrower class for files that are missing or cut off
            raise CheckpointError(f"{folder}: step {step} cannot be read whole ({reason(error)})") from error
        return config, params, {**saved["provenance"], "step": step}
