"""What goes into a step: batches on the mesh, and the stop signals by which all processes end after the same
step."""

import contextlib
import signal
import time
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from fyp_jax.data.config import DataConfig
from fyp_jax.data.loader import Loader
from fyp_jax.errors import UserError
from fyp_jax.parallel.mesh import shard_batch, shard_stop_signal
from fyp_jax.types import Batch, LatentBatch

CONTINUE, PREEMPTED, NO_DATA = 0, 1, 2
"""Stop signals of a process. All processes act on the largest of all, after the same step."""


class BatchFeeder:
    """Global batches on the mesh, each with this process's stop signal."""

    def __init__(
        self,
        loader: Loader,
        config: DataConfig,
        rows: range,
        mesh: Mesh,
    ):
        self._loader, self._config, self._rows, self._mesh = loader, config, rows, mesh
        self._sigterm = False
        self._last: Batch | LatentBatch | None = None
        self.no_data: UserError | None = None
        """Why this process has no more batches."""

    def next(self) -> tuple[Batch | LatentBatch, jax.Array, float]:
        """A batch, the stop signals of all devices of this process, and the seconds that it took.

        A process without data takes part in one more step with its last batch, since the others wait for it,
        and signals NO_DATA. Raises UserError where there are no other processes.
        """
        began = time.perf_counter()
        try:
            self._last = next(self._loader)
        except UserError as error:
            if jax.process_count() == 1:
                raise
            self.no_data = error
        batch = self._loader.blank() if self._last is None else self._last
        placed = shard_batch(batch, self._rows, self._config.batch_size, self._mesh)
        stop_signal = NO_DATA if self.no_data else PREEMPTED if self._sigterm else CONTINUE
        return placed, shard_stop_signal(stop_signal, self._mesh), time.perf_counter() - began

    def state(self) -> dict[str, Any]:
        """The position in the data after the last batch."""
        return dict(self._loader.state())

    @contextlib.contextmanager
    def handle_sigterm(self) -> Iterator["BatchFeeder"]:
        """While it is open, SIGTERM becomes a stop signal. Clouds send it before they take a machine away."""

        def note(*_: object) -> None:
            self._sigterm = True

        before = signal.signal(signal.SIGTERM, note)
        try:
            yield self
        finally:
            signal.signal(signal.SIGTERM, before)
