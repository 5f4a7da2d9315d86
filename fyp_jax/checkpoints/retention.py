"""Which steps of a run stay, and what goes: old, unfinished and damaged ones."""

import dataclasses
import json
import logging
import math
import time
from collections.abc import Iterable, Sequence
from typing import Any

from etils import epath
from orbax.checkpoint import checkpoint_managers

from fyp_jax.checkpoints.checksums import read_checksums
from fyp_jax.checkpoints.manager import Damaged
from fyp_jax.errors import reason

log = logging.getLogger(__name__)

DAMAGED = ".damaged"
"""What the name of a step's folder ends in after a run has found that it is not whole."""
UNFINISHED = "*.orbax-checkpoint-tmp*"
ATTEMPTS, SECONDS_BETWEEN_ATTEMPTS = 20, 0.1
STEP_METADATA = "_CHECKPOINT_METADATA"  # Orbax writes it beside the items of a step


@dataclasses.dataclass
class LowestLoss(checkpoint_managers.PreservationPolicy):
    """Keeps the step with the lowest loss of those whose loss is known.

    Orbax's BestN would need its item `metrics`: a damaged one stops even the opening of the folder, and steps
    without one are kept for ever.
    """

    losses: dict[int, float]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        """Whether each of the checkpoints is the one with the lowest loss."""
        known = [(self.losses.get(x.step, math.nan), x.step) for x in checkpoints]
        best = min((x for x in known if not math.isnan(x[0])), default=(0, None))[1]
        return [x.step == best for x in checkpoints]


def saved_losses(folder: epath.Path, steps: Iterable[int]) -> dict[int, float]:
    """The loss of each step that has one and can be read."""
    losses = {}
    for step in steps:
        try:
            checksums = read_checksums(folder / str(step))
        except Damaged:
            continue
        if checksums is not None and checksums.loss is not None:
            losses[step] = checksums.loss
    return losses


def set_aside(folder: epath.Path, damaged: Iterable[int]) -> None:
    """Take damaged steps out of the way of the steps that follow. The latest stays, for a closer look."""
    latest, *others = sorted(damaged, reverse=True)
    for path in (*folder.glob(f"*{DAMAGED}"), *(folder / str(step) for step in others)):
        path.rmtree()
    (folder / str(latest)).rename(folder / f"{latest}{DAMAGED}")
    log.warning("%s: step %d is now in %d%s", folder, latest, latest, DAMAGED)


def remove_unfinished(folder: epath.Path, step: int | None) -> None:
    """Remove what was written of steps that cannot be finished, and `step` unless it is whole."""
    left = list(folder.glob(UNFINISHED)) if folder.is_dir() else []
    if step is not None and not _is_whole(folder / str(step)):
        left.append(folder / str(step))
    for path in left:
        _remove(path)


def _remove(path: epath.Path) -> None:
    """Remove a folder in which threads may still be writing, or warn that it stays."""
    for attempts_left in reversed(range(ATTEMPTS)):
        try:
            path.rmtree(missing_ok=True)
        except OSError as error:
            if not attempts_left:
                log.warning("%s: cannot be removed (%s)", path, reason(error))
            time.sleep(SECONDS_BETWEEN_ATTEMPTS)
        else:
            return


def _is_whole(folder: epath.Path) -> bool:
    """Whether a step has its name and all small files, so that the error of its save came after it."""
    try:
        return bool(json.loads((folder / STEP_METADATA).read_text()) and read_checksums(folder))
    except (OSError, ValueError, Damaged):
        return False
