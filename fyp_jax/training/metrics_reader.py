"""What comes out of a step: metrics, brought to the host one step late, so that the devices do not wait for
it."""

import math
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from fyp_jax.errors import UserError
from fyp_jax.training.feeder import CONTINUE
from fyp_jax.training.logs import TrainingLog

MAX_NONFINITE_STEPS = 10
"""A run ends after so many steps in a row whose gradient is not finite."""


class MetricsReader:
    """Brings a step's metrics to the host and logs them; ends a run whose gradients are not finite any
    more."""

    def __init__(self, training_log: TrainingLog, batch_size: int):
        self._log, self._batch_size = training_log, batch_size
        self._losses: list[float] = []
        self._read_at = time.perf_counter()
        self.stop_signal = CONTINUE
        self.unread: tuple[int, Mapping[str, Any], float] | None = None
        """The last step, until it is read: its index, its metrics on the devices, seconds of waiting for
        data."""

    def read(self) -> None:
        """Wait for the step that is not read yet, if there is one, and log it.

        Raises UserError after MAX_NONFINITE_STEPS steps in a row without a finite gradient.
        """
        if self.unread is None:
            return
        index, on_devices, waited = self.unread
        self.unread = None
        metrics = jax.tree.map(np.asarray, dict(on_devices))
        now = time.perf_counter()
        bins = zip(metrics["timestep_bin_loss"], metrics["timestep_bin_clips"], strict=True)
        scalars = {
            **{name: float(metrics[name]) for name in ("loss", "grad_norm", "param_norm", "lr", "skipped")},
            **{f"timestep_bin_loss_{i}": float(x) if n else math.nan for i, (x, n) in enumerate(bins)},
            "step_time": now - self._read_at,
            "data_wait": waited,
            "clips": self._batch_size,
        }
        self._read_at = now
        self.stop_signal = int(metrics["stop_signal"])
        self._log.step(index, scalars)
        if math.isfinite(scalars["loss"]):
            self._losses.append(scalars["loss"])
        if int(metrics["skipped_in_row"]) >= MAX_NONFINITE_STEPS:
            raise UserError(
                f"step {index}: the gradient was not finite {MAX_NONFINITE_STEPS} times in a row (loss "
                f"{scalars['loss']}); try a lower optimizer.lr or dtype=float32 from the last checkpoint on"
            )

    def mean_loss(self) -> float:
        """The mean loss of the steps since the last call; infinite where none was finite."""
        losses, self._losses = self._losses, []
        return sum(losses) / len(losses) if losses else math.inf
