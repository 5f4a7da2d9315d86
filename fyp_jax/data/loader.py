"""Batches of examples, decoded in worker processes: the same batches with any number of them."""

import logging
import signal
import sys
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import grain
import jax
import numpy as np
from absl import flags

from fyp_jax.data.collate import Tokenize, collate_clips, collate_latents
from fyp_jax.data.config import DataConfig
from fyp_jax.data.decoding import LatentSample, Sample
from fyp_jax.data.example_source import Example, ExampleSource, RecordSource
from fyp_jax.data.latents import LatentSource
from fyp_jax.data.pool import Pool
from fyp_jax.data.shared_memory import owner_prefix, remove_orphans, use_prefix
from fyp_jax.data.worker_process import set_up_worker
from fyp_jax.errors import UserError, reason
from fyp_jax.types import Batch, LatentBatch

logger = logging.getLogger(__name__)


class TooManyCorruptRecords(UserError):  # noqa: N818  (names the fact, as a caller says it)
    """More records are corrupt than `max_corrupt_fraction` allows; the message names some of them."""


class Loader(Iterator[Batch | LatentBatch]):
    """An endless iterator over the given rows of each global batch, from `start_step` on.

    `tokenize` returns the token ids of a caption, int32 [l]; cached latents have no use for it.
    `with_pose=False` leaves out the poses of the records. Worker processes start with the first batch. They
    end with `close`, at the end of a `with` block, or with this process, however it ends. Before they start,
    shared memory of killed runs is removed. Iterating raises TooManyCorruptRecords (each process counts the
    records that it read itself), and UserError where a worker process dies.
    """

    def __init__(
        self,
        records: RecordSource,
        config: DataConfig,
        tokenize: Tokenize,
        seed: int,
        rows: range,
        start_step: int = 0,
        with_pose: bool = True,
    ):
        self._source = ExampleSource(records, config, seed, with_pose)
        if not rows or not set(rows) <= set(range(config.batch_size)):
            raise ValueError(f"rows {rows} are not rows of a batch of {config.batch_size}")
        self._rows, self._step = rows, start_step
        self._collate: Callable[[list[Any]], Batch | LatentBatch] = (
            partial(collate_latents, empty_text=records.empty_text)
            if isinstance(records, LatentSource)
            else partial(collate_clips, tokenize=tokenize)
        )
        self._running: list[Any] = []  # Grain's iterator, or empty before the first batch
        weakref.finalize(self, _close, self._running)
        self.rejected: dict[str, str] = {}
        """Reason by name, of the corrupt records that this process has met."""

    def __next__(self) -> Batch | LatentBatch:
        try:
            if not self._running:
                self._running.append(self._start())
            samples = [self._next_sample() for _ in self._rows]
        except BaseException:
            self.close()  # so that the next call starts this batch from its first row
            raise
        self._step += 1
        return self._collate(samples)

    def state(self) -> dict[str, int | str]:
        """State from which a later loader can resume, ready for JSON."""
        source = self._source
        return {
            "step": self._step,
            "seed": source.seed,
            "batch_size": source.config.batch_size,
            "records": source.records.fingerprint,
            **({"pool_size": source.config.pool_size} if source.config.pool_size else {}),
        }

    def restore(self, state: dict[str, int | str]) -> None:
        """Resume from a `state`, with any number of workers and rows, without decoding earlier batches.

        Raises UserError where the records, the seed, the batch size or the pool differ, since the order would
        differ.
        """
        current = self.state()
        keys = [key for key in {**current, **state} if key != "step"]
        differing = [key for key in keys if state.get(key) != current.get(key)]
        if differing:
            problem = "; ".join(f"{key} was {state.get(key)}, is {current.get(key)}" for key in differing)
            raise UserError(f"{self._source.config.source}: cannot resume with other data: {problem}")
        self.close()
        self._step = int(state["step"])

    def close(self) -> None:
        """End the worker processes. Iterating again starts new ones, at the next batch."""
        _close(self._running)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> Iterator[Example]:
        workers, rows = self._source.config.workers, self._rows
        first = self._step * len(rows)
        if self._source.config.pool_size is not None:
            return Pool(self._source, partial(_example_index, self._source.config.batch_size, rows), first)
        dataset = grain.MapDataset.range(first, sys.maxsize).map(partial(_example_at, self._source, rows))
        # no threads beside a decoder: there is a process for each core
        stream = dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        if workers:
            remove_orphans()
            use_prefix(owner_prefix())
            if not flags.FLAGS.is_parsed():  # Grain reads them even in a program that has none
                flags.FLAGS.mark_as_parsed()
            buffer_size = -(-len(rows) // workers)  # one batch in all; Grain buffers as much in this process
            options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=buffer_size)
            stream = stream.mp_prefetch(options, partial(_init_worker, owner_prefix()))
        return iter(stream)

    def _next_sample(self) -> Sample | LatentSample:
        try:
            example = next(self._running[0])
        except RuntimeError as error:
            if "terminated unexpectedly" not in str(error):
                raise
            raise UserError(
                f"{self._source.config.source}: a data worker process died, perhaps out of memory or of "
                f"shared memory (/dev/shm); fewer data.workers use less. {reason(error)}"
            ) from error
        for name, why in example.rejected.items():
            if name not in self.rejected:
                logger.warning("%s: skipped, %s", name, why)
                self.rejected[name] = why
        if example.sample is None or len(self.rejected) > self._source.max_corrupt:
            raise self._too_many(None if example.sample else len(example.rejected))
        return example.sample

    def _too_many(self, in_a_row: int | None) -> TooManyCorruptRecords:
        source, corrupt = self._source, list(self.rejected.items())
        some = "; ".join(f"{name}: {why}" for name, why in corrupt[:3]) + (
            "; ..." if len(corrupt) > 3 else ""
        )
        return TooManyCorruptRecords(
            f"{source.config.source}: {len(corrupt)} of {len(source.records)} records are corrupt"
            + (f", {in_a_row} of them sampled in a row" if in_a_row else "")
            + f"; data.max_corrupt_fraction={source.config.max_corrupt_fraction} allows "
            + f"{source.max_corrupt}: {some}"
        )

    def blank(self) -> Batch | LatentBatch:
        """A batch of black clips without captions, for a process that has no more data."""
        config, records, with_pose = self._source.config, self._source.records, self._source.with_pose
        if isinstance(records, LatentSource):
            return self._collate([records.blank(config, with_pose)] * len(self._rows))
        black = np.zeros((config.num_frames, *config.clip_size, 3), np.uint8)
        return self._collate([Sample(black, black if with_pose else None, "")] * len(self._rows))


def _example_at(source: ExampleSource, rows: range, position: int) -> Example:
    """The example at a position in the sequence of this process, which has only its rows of each batch."""
    return source[_example_index(source.config.batch_size, rows, position)]


def _example_index(batch_size: int, rows: range, position: int) -> int:
    step, row = divmod(position, len(rows))
    return step * batch_size + rows[row]


def _close(running: list[Any]) -> None:
    while running:
        running.pop().close()


def _init_worker(prefix: str, index: int, count: int) -> None:
    del index, count
    use_prefix(prefix)  # what this worker makes is the trainer's
    jax.config.update("jax_platforms", "cpu")  # Grain imports JAX; the accelerators belong to the trainer
    set_up_worker(signal.SIGINT, signal.SIGTERM)  # on SIGTERM the trainer still needs its batch
