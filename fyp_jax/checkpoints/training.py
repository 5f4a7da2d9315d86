"""The checkpoints of a training run, which have all four items: it resumes from them."""

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
    """The state that a training run resumes from."""

    step: int
    """Number of steps that were done."""
    train: Any
    """The saved tree, each array with the sharding of the target's."""
    data: dict[str, Any]
    """Position of the data iterator."""


class TrainingCheckpoints:
    """The checkpoints of one run, written in the background while training continues; a context manager.

    The latest `max_to_keep` steps are kept, and the one with the lowest loss. All processes of a run call the
    same methods.
    """

    def __init__(self, folder: Folder, max_to_keep: int):
        """Create the folder. Raises CheckpointError where that fails."""
        self.folder = make_folder(folder)
        lowest = checkpoint_managers.BestN(get_metric_fn=lambda metrics: metrics["loss"], reverse=True, n=1)
        policy = checkpoint_managers.AnyPreservationPolicy([checkpoint_managers.LatestN(max_to_keep), lowest])
        self._manager = open_manager(folder, create=True, preservation_policy=policy)

    def __enter__(self) -> "TrainingCheckpoints":
        return self

    def __exit__(self, *_: object) -> None:
        """Wait until all checkpoints are written."""
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
        """Copy the arrays to the host and start to write them, after the checkpoint before is written.

        `loss` decides which checkpoint is the best. Raises CheckpointError where writing fails; the
        next call raises it where a write in the background failed.
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
        """The latest step, its arrays sharded as those of `train`; None where there is no step.

        Raises CheckpointError where it cannot be read, TreeMismatch where its arrays have other names or
        shapes than those of `train`.
        """
        step = self._manager.latest_step()
        if step is None:
            return None
        try:
            return self._restore(step, train)
        except UserError:
            raise
        except Exception as error:  # Orbax raises no narrower class for files that are missing or truncated
            raise CheckpointError(
                f"{self.folder}: step {step} cannot be read completely ({reason(error)}); move its folder "
                "away to resume from the step before"
            ) from error

    def _restore(self, step: int, train: Any) -> RestoredState:
        found = dict(self._manager.item_metadata(step).items()).get("train")
        if found is None:
            raise CheckpointError(
                f"{self.folder}: step {step} holds no training state to resume from; to start a new run from "
                f"its weights, choose another folder for the run and set init_checkpoint={self.folder}"
            )
        trees.check_same(
            _by_path(found.tree), _by_path(train), f"{self.folder}: step {step} is of another run"
        )
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, train)
        items = {"train": ocp.args.StandardRestore(target), "data": ocp.args.JsonRestore()}
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        return RestoredState(step, restored["train"], restored["data"])


def _by_path(tree: Any) -> dict[str, Any]:
    """Leaves of any tree by path. The paths are the same after Orbax has turned tuples into lists."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
