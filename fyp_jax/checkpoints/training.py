"""The state that a training run resumes from."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from fyp_jax import trees
from fyp_jax.checkpoints.manager import ORBAX_ERRORS, CheckpointError, Folder, make_folder, open_manager
from fyp_jax.errors import UserError, reason


@dataclasses.dataclass(frozen=True)
class RestoredState:
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
        self.folder = make_folder(folder)
        lowest = checkpoint_managers.BestN(get_metric_fn=lambda kept: kept["loss"], reverse=True, n=1)
        policy = checkpoint_managers.AnyPreservationPolicy([checkpoint_managers.LatestN(keep), lowest])
        self._manager = open_manager(folder, create=True, preservation_policy=policy)

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

    def restore(self, train: Any) -> RestoredState | None:
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

    def _restore(self, step: int, train: Any) -> RestoredState:
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
        return RestoredState(step, restored["train"], restored["data"])


def _by_path(tree: Any) -> dict[str, Any]:
    """Leaves of any tree by names that are the same for what Orbax makes of it (a tuple becomes a list)."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
