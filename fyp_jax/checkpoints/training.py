"""The checkpoints of a training run, which have all items: it resumes from them."""

import contextlib
import dataclasses
import logging
import threading
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict
from orbax.checkpoint import checkpoint_managers

from fyp_jax import trees
from fyp_jax.checkpoints.array_reader import ArrayReader
from fyp_jax.checkpoints.checksums import (
    ITEM,
    Checksums,
    any_process,
    array_checksums,
    check_arrays,
    json_crc32,
    read_checksums,
)
from fyp_jax.checkpoints.manager import (
    CheckpointError,
    Damaged,
    Folder,
    latest_step,
    make_folder,
    open_manager,
)
from fyp_jax.checkpoints.retention import (
    UNFINISHED,
    LowestLoss,
    remove_unfinished,
    saved_losses,
    set_aside,
)
from fyp_jax.errors import UserError, reason
from fyp_jax.freed_memory import FreedMemory
from fyp_jax.interrupts import uninterrupted

log = logging.getLogger(__name__)

SECONDS_TO_CLOSE = 20
"""How long threads may go on after an error of one of them."""


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

    The latest `max_to_keep` steps are kept, and the one with the lowest loss, whichever process of the run's
    life wrote them. One step is written at a time. All processes of a run call the same methods.
    """

    def __init__(self, folder: Folder, max_to_keep: int, verify: bool = True):
        """Create the folder, and remove what an earlier process left unfinished. Raises CheckpointError.

        `verify=False` restores arrays without a look at their checksums.
        """
        self.folder, self._verify = make_folder(folder), verify
        self._unfinished = sorted(path.name.split(".")[0] for path in self.folder.glob(UNFINISHED))
        self._losses: dict[int, float] = {}
        policy = checkpoint_managers.AnyPreservationPolicy(
            [checkpoint_managers.LatestN(max_to_keep), LowestLoss(self._losses)]
        )
        self._manager = open_manager(
            folder, create=True, cleanup_tmp_directories=True, preservation_policy=policy
        )
        self._freed_memory = FreedMemory()
        self._saving: int | None = None
        self._failure: CheckpointError | None = None
        self._losses |= saved_losses(self.folder, self._manager.all_steps())

    def __enter__(self) -> "TrainingCheckpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Wait until all checkpoints are written. Raises CheckpointError where one cannot be, unless another
        error is on its way. After Ctrl-C a log line says which step is the last whole one."""
        if self._failure is not None:
            if jax.process_index() == 0:  # threads that went on after the error may have written more
                remove_unfinished(self.folder, None)
            return
        try:
            self._manager.close()
        except KeyboardInterrupt:
            self.__exit__(KeyboardInterrupt)
            raise
        except Exception as error:  # Orbax raises whatever its threads met
            failed = self._failed(error)
            if kind is None:
                raise failed from error
            log.warning("%s", failed)
            return
        if kind is KeyboardInterrupt:
            log.warning("%s: %s", self.folder, self._resumes_from())

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

        `loss` decides which checkpoint is the best. Raises CheckpointError where writing fails, or where an
        array is not finite; the next call, or `between_steps`, raises it where a write in the background
        failed.
        """
        config = {**config, ITEM: True}
        arrays = {f"train/{path}": x for path, x in trees.by_path(train).items()}
        arrays |= {f"inference/{path}": x for path, x in flatten_dict(dict(inference), sep="/").items()}
        try:
            measured = array_checksums(arrays)
        except Damaged as error:
            self.wait()
            raise CheckpointError(
                f"{self.folder}: step {step} is not saved: {error}; {self._resumes_from()}"
            ) from error
        checksums = Checksums(measured, {"data": json_crc32(data), "config": json_crc32(config)}, loss)
        items = {
            "train": ocp.args.StandardSave(train),
            "inference": ocp.args.StandardSave(dict(inference)),
            "data": ocp.args.JsonSave(dict(data)),
            "config": ocp.args.JsonSave(config),
            ITEM: ocp.args.JsonSave(checksums.to_json()),
        }
        self.wait()
        try:
            self._saving, self._losses[step] = step, loss
            self._start_to_write(step, items)
        except Exception as error:  # Orbax raises whatever its threads met
            raise self._failed(error) from error
        self._freed_memory.expect(sum(x.nbytes for x in arrays.values()) // jax.process_count())

    @uninterrupted  # or Orbax's threads write on, and no one waits for them
    def _start_to_write(self, step: int, items: Mapping[str, Any]) -> None:
        self._manager.save(step, args=ocp.args.Composite(**items))

    def wait(self) -> None:
        """Wait until the step that is being written is whole. Raises CheckpointError where that fails."""
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # Orbax raises whatever its threads met
            raise self._failed(error) from error
        self._freed_memory.give_back()

    def between_steps(self) -> None:
        """Clean up after a step that was written meanwhile. Raises CheckpointError where it failed."""
        if not self._manager.is_saving_in_progress():
            self.wait()

    def restore(self, train: Any) -> RestoredState | None:
        """The latest whole step, its arrays sharded as those of `train`; None where there is no step.

        Steps that are damaged are named in a warning; once an older whole one is found, the folder of the
        latest damaged one gets a name that ends in `.damaged`, and the others are removed. Raises
        CheckpointError where there are steps but none is whole, TreeMismatch where the arrays have other
        names or shapes than those of `train`.
        """
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            restored, problem = self._try_to_restore(step, train)
            if not any_process(restored is None) and restored is not None:
                self._set_aside(damaged)
                return restored
            damaged[step] = problem or "another process cannot read it"
            log.warning("%s: step %d is not a complete checkpoint: %s", self.folder, step, damaged[step])
        if damaged:
            step, problem = next(iter(damaged.items()))
            raise CheckpointError(
                f"{self.folder}: step {step} is not a complete checkpoint ({problem}), and no older one is; "
                "to start anew, move the folder away"
            )
        if self._unfinished:
            log.warning(
                "%s: the only checkpoint, of step %s, was not complete when an earlier process ended, so "
                "training starts from the beginning",
                self.folder,
                self._unfinished[-1],
            )
        return None

    def _try_to_restore(self, step: int, train: Any) -> tuple[RestoredState | None, str | None]:
        try:
            return self._restore(step, train), None
        except Damaged as error:
            return None, str(error)
        except UserError:
            raise
        except Exception as error:  # Orbax raises no narrower class for files that are missing or truncated
            return None, reason(error)

    def _restore(self, step: int, train: Any) -> RestoredState:
        folder, expected = self.folder / str(step), trees.by_path(train)
        checksums = read_checksums(folder)
        saved = None if checksums is None else checksums.of_item("train")
        has_train = (folder / "train").exists()
        weights_alone = (folder / "inference").exists() and not (folder / "data").exists()
        if saved == {} or (saved is None and not has_train and weights_alone):
            raise CheckpointError(
                f"{self.folder}: step {step} holds no training state to resume from; to start a new run from "
                f"its weights, choose another folder for the run and set init_checkpoint={self.folder}"
            )
        what = f"{self.folder}: step {step} is of another run"
        if saved is not None:
            trees.check_same(saved, expected, what)
        if not has_train:
            raise Damaged("its training state is missing")
        # Orbax's metadata of many arrays take seconds; the checksums tell shapes and dtypes too.
        leaves = self._metadata(step) if saved is None or jax.process_count() > 1 else {}
        if saved is None:
            trees.check_same(leaves, expected, what)
        dtypes = {path: jnp.dtype(x.dtype) for path, x in (leaves if saved is None else saved).items()}
        names = {"data": ocp.args.JsonRestore(), "config": ocp.args.JsonRestore()}
        items = self._manager.restore(step, args=ocp.args.Composite(**names))
        if checksums is not None:
            for name in names:
                checksums.check_item(name, items[name])
        elif items["config"].get(ITEM):
            raise Damaged("its checksums are missing")
        else:
            log.warning("%s: step %d was saved without checksums, and is not verified", self.folder, step)
        saved = saved if self._verify else None
        if jax.process_count() > 1:  # no process will have whole arrays, so each reads some of them
            reader = ArrayReader(next(iter(leaves.values())).directory)
            check_arrays({path: reader.lazy_array(leaf) for path, leaf in leaves.items()}, saved)
        # In the dtypes that were saved: the checksums are of these bytes.
        targets = [
            jax.ShapeDtypeStruct(x.shape, dtypes[path], sharding=x.sharding) for path, x in expected.items()
        ]
        target = jax.tree.unflatten(jax.tree.structure(train), targets)
        args = ocp.args.Composite(train=ocp.args.StandardRestore(target))
        restored = self._manager.restore(step, args=args)["train"]
        if jax.process_count() == 1:
            check_arrays(trees.by_path(restored), saved)
        restored = jax.tree.map(lambda x, y: x if x.dtype == y.dtype else x.astype(y.dtype), restored, train)
        return RestoredState(step, restored, items["data"])

    def _metadata(self, step: int) -> dict[str, Any]:
        """What Orbax knows of the arrays of the training state, by path."""
        found = dict(self._manager.item_metadata(step).items()).get("train")
        if found is None:
            raise Damaged("its training state is missing")
        return trees.by_path(found.tree)

    def _set_aside(self, damaged: Mapping[int, str]) -> None:
        if not damaged:
            return
        if jax.process_index() == 0:
            set_aside(self.folder, damaged)
        any_process(False)  # all wait for the first process
        self._manager.reload()

    def _failed(self, error: Exception) -> CheckpointError:
        """The error of a step that cannot be written, after what was written of it is removed."""
        step = self._saving
        # Orbax reports the first error while its other threads still write, and some never end.
        closing = threading.Thread(target=self._close_after_error, daemon=True)
        closing.start()
        closing.join(SECONDS_TO_CLOSE)
        if jax.process_index() == 0:
            remove_unfinished(self.folder, step)
        self._failure = CheckpointError(
            f"{self.folder}: step {step} cannot be written ({reason(error, 500)}); {self._resumes_from()}"
        )
        return self._failure

    def _close_after_error(self) -> None:
        with contextlib.suppress(Exception):
            self._manager.close()

    def _resumes_from(self) -> str:
        try:
            step = latest_step(self.folder)
        except OSError:
            step = None
        if step is None:
            return "no step is saved yet, and the same command starts from the beginning"
        return f"the last whole step is {step}, and the same command resumes from it"
