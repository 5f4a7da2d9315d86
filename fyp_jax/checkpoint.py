"""Orbax checkpoints: `FOLDER/STEP/`, with one item for each thing that is read on its own.

inference/   {"unet": ..., "pose_encoder": ...}: all that sampling needs, in the dtype it was saved in
config/      JSON: sizes of the UNet, and whatever the writer wants to be remembered
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.typing import DTypeLike

from fyp_jax import trees
from fyp_jax.errors import UserError, reason
from fyp_jax.models.pose_encoder import pose_encoder_shapes
from fyp_jax.models.unet import UNet3DConfig, unet_shapes

logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax tells of every step it takes


class CheckpointError(UserError):
    """A checkpoint that cannot be written or read; the message opens with its path."""


def inference_shapes(config: UNet3DConfig) -> dict[str, Any]:
    """Names and shapes of all that sampling needs."""
    return {"unet": unet_shapes(config), "pose_encoder": pose_encoder_shapes(config)}


def require_free(folder: Path, step: int) -> None:
    """Raise CheckpointError where a step cannot be written: it is there already, or no number of a step."""
    if step < 0:
        raise CheckpointError(f"{folder}: a step is 0 or more, not {step}")
    if (folder / str(step)).exists():
        raise CheckpointError(f"{folder}: has a step {step} already, and is not overwritten")


def save_inference(
    folder: Path, step: int, config: UNet3DConfig, params: Mapping[str, Any], origin: Mapping[str, Any]
) -> None:
    """Write the parameters that sampling reads; `origin` says where they are from.

    Raises CheckpointError where the folder has this step already or cannot be made, TreeMismatch where the
    parameters are not those of `config`.
    """
    trees.check_same(trees.flatten(params), trees.flatten(inference_shapes(config)), str(folder))
    require_free(folder, step)
    try:  # before Orbax, whose threads would wait for minutes
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder}: no folder can be made here ({error.strerror})") from error
    items = {
        "inference": ocp.args.StandardSave(dict(params)),
        "config": ocp.args.JsonSave({"unet": config.to_json(), "origin": dict(origin)}),
    }
    with _manager(folder, create=True) as manager:
        manager.save(step, args=ocp.args.Composite(**items))


def load_inference(
    folder: Path, dtype: DTypeLike = jnp.float32
) -> tuple[UNet3DConfig, dict[str, Any], dict[str, Any]]:
    """The newest step of a checkpoint: sizes, parameters as `dtype`, and where they are from.

    Raises CheckpointError where there is none that can be read, TreeMismatch where the arrays are not of
    the sizes that the checkpoint itself states.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    step = max((int(path.name) for path in folder.iterdir() if path.name.isdigit()), default=None)
    if step is None:
        raise CheckpointError(f"{folder}: no checkpoint in it (no folder with a step number)")
    try:
        return _load_step(folder, step, dtype)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder}: step {step} is not a whole checkpoint ({reason(error)})") from error


def _load_step(
    folder: Path, step: int, dtype: DTypeLike
) -> tuple[UNet3DConfig, dict[str, Any], dict[str, Any]]:
    with _manager(folder, create=False) as manager:
        saved = manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))["config"]
        config = UNet3DConfig.from_json(saved["unet"])
        shapes = inference_shapes(config)
        found = manager.item_metadata(step)["inference"]
        if found is None:
            raise CheckpointError(f"{folder}: step {step} has no inference parameters")
        trees.check_same(trees.flatten(found.tree), trees.flatten(shapes), f"{folder}, step {step}")
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=device), shapes)
        restore = ocp.args.Composite(inference=ocp.args.StandardRestore(target))
        try:
            params = manager.restore(step, args=restore)["inference"]
        except Exception as error:  # Orbax raises no narrower class for files that are missing or cut off
            raise CheckpointError(f"{folder}: step {step} cannot be read whole ({reason(error)})") from error
        return config, params, {**saved["origin"], "step": step}


def _manager(folder: Path, create: bool) -> ocp.CheckpointManager:
    handlers = {"inference": ocp.StandardCheckpointHandler(), "config": ocp.JsonCheckpointHandler()}
    options = ocp.CheckpointManagerOptions(create=create)
    return ocp.CheckpointManager(folder.absolute(), item_handlers=handlers, options=options)
