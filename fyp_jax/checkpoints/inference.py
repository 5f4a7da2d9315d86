"""The items `inference` and `config` of a checkpoint: weights for sampling, and the UNet's sizes."""

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

from fyp_jax import trees
from fyp_jax.checkpoints.array_reader import ArrayReader
from fyp_jax.checkpoints.checksums import (
    ITEM,
    ArrayChecksum,
    Checksums,
    array_checksums,
    check_arrays,
    checked,
    json_crc32,
    read_checksums,
)
from fyp_jax.checkpoints.manager import (
    ORBAX_ERRORS,
    CheckpointError,
    Damaged,
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
    where the folder has this step already or cannot be created, or where a parameter is not finite,
    TreeMismatch where the parameters do not have the names and shapes of `config`.
    """
    _check_shapes(config, params, str(folder))
    check_new_step(folder, step)
    make_folder(folder)
    about = {"unet": config.to_json(), "provenance": dict(provenance), ITEM: True}
    try:
        measured = array_checksums(
            {f"inference/{path}": x for path, x in flatten_dict(params, sep="/").items()}
        )
    except Damaged as error:
        raise CheckpointError(f"{folder}: step {step} is not saved: {error}") from error
    items = {
        "inference": ocp.args.StandardSave(dict(params)),
        "config": ocp.args.JsonSave(about),
        ITEM: ocp.args.JsonSave(Checksums(measured, {"config": json_crc32(about)}, None).to_json()),
    }
    with open_manager(folder, create=True) as manager:
        manager.save(step, args=ocp.args.Composite(**items))


def load_inference(
    folder: Folder, dtype: DTypeLike = jnp.float32, step: int | None = None, verify: bool = True
) -> tuple[UNet3DConfig, dict[str, Any], dict[str, Any]]:
    """A step of a checkpoint (None: the latest): the UNet's config, the parameters (UNet and pose encoder as
    `dtype`, VAE and text encoder as float32), and their provenance.

    `folder` is a folder of steps, a run's folder or one step's folder (`resolve_step`).
    The parameters are {"unet": ..., "pose_encoder": ...}, and encoders if the checkpoint has any. The
    provenance also has the `step`. Raises CheckpointError where there is no step that can be read, where an
    array is not what was saved (`verify=False` does not look) or is not finite, TreeMismatch where the arrays
    do not have the shapes of the config in the checkpoint.
    """
    folder, step = resolve_step(folder, step)
    with _read_errors(folder, step):
        return _load_step(folder, step, dtype, verify)


def open_inference(folder: Folder, step: int | None = None) -> Weights:
    """The same as `load_inference` gives, but no array is read yet.

    Each array is read as a whole, however it was sharded when it was written. Raises as `load_inference`;
    reading an array raises CheckpointError where it is damaged, or is not finite.
    """
    folder, step = resolve_step(folder, step)
    with _read_errors(folder, step):
        with open_manager(folder, create=False) as manager:
            config, provenance, tree, checksums = _open_step(manager, folder, step)
        flat: dict[str, Any] = flatten_dict(tree, sep="/")
        reader = ArrayReader(next(iter(flat.values())).directory)

        def lazy_array(path: str) -> LazyArray:
            array = checked(reader.lazy_array(flat[path]), checksums.get(path), path)

            def read() -> np.ndarray:
                with _read_errors(folder, step):
                    return array.read()

            return LazyArray(array.shape, array.dtype, read)

        models = unflatten_dict({path: lazy_array(path) for path in flat}, sep="/")
        return Weights(config, models, provenance)


@contextlib.contextmanager
def _read_errors(folder: Folder, step: int) -> Iterator[None]:
    """While it is open, Orbax's errors become a CheckpointError that names the step."""
    try:
        yield
    except Damaged as error:
        raise CheckpointError(f"{folder}: step {step} is damaged: {error}") from error
    except UserError:
        raise
    except ORBAX_ERRORS as error:
        raise CheckpointError(
            f"{folder}: step {step} is not a complete checkpoint ({reason(error)})"
        ) from error


def _open_step(
    manager: ocp.CheckpointManager, folder: Folder, step: int
) -> tuple[UNet3DConfig, dict[str, Any], dict[str, Any], dict[str, ArrayChecksum]]:
    """The UNet's config, the provenance, Orbax's metadata of the arrays, nested by name, and their checksums
    by path."""
    checksums = read_checksums(epath.Path(folder) / str(step))
    saved = manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))["config"]
    if checksums is not None:
        checksums.check_item("config", saved)
    elif saved.get(ITEM):
        raise Damaged("its checksums are missing")
    config = UNet3DConfig.from_json(saved["unet"])
    found = manager.item_metadata(step)["inference"]
    if found is None:
        raise CheckpointError(f"{folder}: step {step} has no inference parameters")
    _check_shapes(config, found.tree, f"{folder}, step {step}")
    arrays = {} if checksums is None else checksums.of_item("inference")
    return config, {**saved["provenance"], "step": step}, found.tree, arrays


def _check_shapes(config: UNet3DConfig, tree: Mapping[str, Any], what: str) -> None:
    """Raise TreeMismatch unless UNet and pose encoder have the shapes of `config`. Encoders may have any."""
    expected = inference_shapes(config) | {name: part for name, part in tree.items() if name in ENCODERS}
    trees.check_same(flatten_dict(tree, sep="/"), flatten_dict(expected, sep="/"), what)


def _load_step(
    folder: Folder, step: int, dtype: DTypeLike, verify: bool
) -> tuple[UNet3DConfig, dict[str, Any], dict[str, Any]]:
    with open_manager(folder, create=False) as manager:
        config, provenance, tree, checksums = _open_step(manager, folder, step)
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), tree
        )
        restore = ocp.args.Composite(inference=ocp.args.StandardRestore(target))
        try:
            params = manager.restore(step, args=restore)["inference"]
        except Exception as error:  # Orbax raises no narrower class for files that are missing or truncated
            raise Damaged(f"its weights cannot be read completely ({reason(error)})") from error
    flat: dict[str, Any] = flatten_dict(params, sep="/")
    del params
    check_arrays(flat, checksums if verify else None)
    for path, x in flat.items():  # one by one, so that no second copy of the model is in memory
        wanted = jnp.float32 if path.split("/")[0] in ENCODERS else dtype
        flat[path] = x if x.dtype == wanted else jax.device_put(np.asarray(x).astype(wanted), device)
    return config, unflatten_dict(flat, sep="/"), provenance
