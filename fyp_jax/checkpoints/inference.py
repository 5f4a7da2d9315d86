"""The items `inference` and `config` of a checkpoint: weights for sampling, and the UNet's sizes."""

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
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
    resolve_step,
)
from fyp_jax.convert.lazy import LazyArray, Weights
from fyp_jax.errors import UserError, reason
from fyp_jax.models.encoders import ENCODERS
from fyp_jax.models.pose_encoder import pose_encoder_shapes
from fyp_jax.models.unet import UNet3DConfig, unet_shapes


def inference_shapes(config: UNet3DConfig) -> dict[str, Any]:
    """Nested shapes of the parameters of both models, {"unet": ..., "pose_encoder": ...}."""
    return {"unet": unet_shapes(config), "pose_encoder": pose_encoder_shapes(config)}


def check_new_step(folder: Folder, step: int) -> None:
    """Raise CheckpointError where a step exists already, or is negative."""
    if step < 0:
        raise CheckpointError(f"{folder}: a step is 0 or more, not {step}")
    if (epath.Path(folder) / str(step)).exists():
        raise CheckpointError(f"{folder}: step {step} exists already and is not overwritten")


def save_inference(
    folder: Folder, step: int, config: UNet3DConfig, params: Mapping[str, Any], provenance: Mapping[str, Any]
) -> None:
    """Write a step that sampling can read, without training state.

    `provenance` says where the parameters are from, in values that JSON can hold. Raises CheckpointError
    where the folder has this step already or cannot be created, TreeMismatch where the parameters do not have
    the names and shapes of `config`.
    """
    _check_shapes(config, params, str(folder))
    check_new_step(folder, step)
    make_folder(folder)
    items = {
        "inference": ocp.args.StandardSave(dict(params)),
        "config": ocp.args.JsonSave({"unet": config.to_json(), "provenance": dict(provenance)}),
    }
    with open_manager(folder, create=True) as manager:
        manager.save(step, args=ocp.args.Composite(**items))


def load_inference(
    folder: Folder, dtype: DTypeLike = jnp.float32, step: int | None = None
) -> tuple[UNet3DConfig, dict[str, Any], dict[str, Any]]:
    """A step of a checkpoint (None: the latest): the UNet's config, all parameters as `dtype`, and their
    provenance.

    `folder` is a folder of steps, a run's folder or one step's folder (`resolve_step`).
    The parameters are {"unet": ..., "pose_encoder": ...}, and encoders if the checkpoint has any. The
    provenance also has the `step`. Raises CheckpointError where there is no step that can be read,
    TreeMismatch where the arrays do not have the shapes of the config in the checkpoint.
    """
    folder, step = resolve_step(folder, step)
    with _read_errors(folder, step):
        return _load_step(folder, step, dtype)


def open_inference(folder: Folder, step: int | None = None) -> Weights:
    """The same as `load_inference` gives, but no array is read yet.

    Each array is read as a whole, however it was sharded when it was written. Raises as `load_inference`;
    reading an array raises CheckpointError where it is damaged.
    """
    folder, step = resolve_step(folder, step)
    with _read_errors(folder, step):
        with open_manager(folder, create=False) as manager:
            config, provenance, tree = _open_step(manager, folder, step)
        flat: dict[str, Any] = flatten_dict(tree, sep="/")
        reader = _ArrayReader(f"{folder}: step {step}", next(iter(flat.values())).directory)
        models = unflatten_dict({path: reader.lazy_array(leaf) for path, leaf in flat.items()}, sep="/")
        return Weights(config, models, provenance)


@contextlib.contextmanager
def _read_errors(folder: Folder, step: int) -> Iterator[None]:
    """While it is open, Orbax's errors become a CheckpointError that names the step."""
    try:
        yield
    except UserError:
        raise
    except ORBAX_ERRORS as error:
        raise CheckpointError(
            f"{folder}: step {step} is not a complete checkpoint ({reason(error)})"
        ) from error


def _open_step(
    manager: ocp.CheckpointManager, folder: Folder, step: int
) -> tuple[UNet3DConfig, dict[str, Any], dict[str, Any]]:
    """The UNet's config, the provenance, and Orbax's metadata of the arrays, nested by name."""
    saved = manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))["config"]
    config = UNet3DConfig.from_json(saved["unet"])
    found = manager.item_metadata(step)["inference"]
    if found is None:
        raise CheckpointError(f"{folder}: step {step} has no inference parameters")
    _check_shapes(config, found.tree, f"{folder}, step {step}")
    return config, {**saved["provenance"], "step": step}, found.tree


def _check_shapes(config: UNet3DConfig, tree: Mapping[str, Any], what: str) -> None:
    """Raise TreeMismatch unless UNet and pose encoder have the shapes of `config`. Encoders may have any."""
    expected = inference_shapes(config) | {name: part for name, part in tree.items() if name in ENCODERS}
    trees.check_same(flatten_dict(tree, sep="/"), flatten_dict(expected, sep="/"), what)


class _ArrayReader:
    """Reads single arrays of one item. Orbax's own restore needs the names of all arrays of the item."""

    def __init__(self, what: str, directory: epath.Path):
        self._what = what
        self._runner = asyncio.Runner()
        self._handler = type_handlers.NumpyHandler()
        self._ocdbt = type_handlers.is_ocdbt_checkpoint(directory)
        self._context = type_handlers.get_ts_context(use_ocdbt=self._ocdbt)

    def lazy_array(self, leaf: Any) -> LazyArray:
        info = type_handlers.ParamInfo(
            name=leaf.name,
            parent_dir=leaf.directory,
            is_ocdbt_checkpoint=self._ocdbt,
            ts_context=self._context,
        )
        return LazyArray(tuple(leaf.shape), np.dtype(leaf.dtype), lambda: self._read(info))

    def _read(self, info: type_handlers.ParamInfo) -> np.ndarray:
        arrays: list[np.ndarray] = []

        async def read() -> None:  # returns nothing: asyncio would format the returned array, which is slow
            arrays.extend(await self._handler.deserialize([info]))

        try:
            self._runner.run(read())
        except Exception as error:  # Orbax raises no narrower class for files that are missing or truncated
            raise CheckpointError(f"{self._what} cannot be read completely ({reason(error)})") from error
        return arrays[0]


def _load_step(
    folder: Folder, step: int, dtype: DTypeLike
) -> tuple[UNet3DConfig, dict[str, Any], dict[str, Any]]:
    with open_manager(folder, create=False) as manager:
        config, provenance, tree = _open_step(manager, folder, step)
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=device), tree)
        restore = ocp.args.Composite(inference=ocp.args.StandardRestore(target))
        try:
            params = manager.restore(step, args=restore)["inference"]
        except Exception as error:  # Orbax raises no narrower class for files that are missing or truncated
            raise CheckpointError(
                f"{folder}: step {step} cannot be read completely ({reason(error)})"
            ) from error
        return config, params, provenance
