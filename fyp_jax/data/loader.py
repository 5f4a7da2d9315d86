"""Records -> batches: shuffled, repeated, decoded in worker processes, the same on any number of them.

All processes of a run draw from one endless sequence of elements, in which element `step * batch_size + row`
is row `row` of the global batch of `step`. An element is a function of the records, the config, the seed and
its own number, whoever decodes it; so no order is kept that a restart could lose.
"""

import logging
import math
import signal
import sys
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, Protocol, runtime_checkable

import grain
import jax
import numpy as np
from absl import flags
from jaxtyping import Int32

from fyp_jax.data.config import DataConfig
from fyp_jax.data.decoding import Record, Sample, as_text, decode_image, decode_video
from fyp_jax.data.workers import exit_with_parent
from fyp_jax.errors import UserError, reason
from fyp_jax.types import Batch

FALSE_ALARM_RATE = 1e-15
"""How unlikely a row of refused records must be for it to show that there are too many of them."""

logger = logging.getLogger(__name__)


@runtime_checkable
class RecordSource(Protocol):
    """Records at random access, as `data/datasets.py` opens them; goes to worker processes by pickle."""

    kind: str
    """"pose_images" or "captioned_videos"."""
    fingerprint: str
    """Other records have another."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


class TooManyBadFiles(UserError):  # noqa: N818  (names the fact, as a caller says it)
    """More of the records are broken than `max_corrupt_fraction` allows; the message names some of them."""


class ExampleSpec(NamedTuple):
    """What chance decides about one element."""

    record: int
    """Index of the record that has its turn."""
    without_text: bool
    rng: np.random.Generator
    """For the window, and for who takes the record's place if it is broken."""


class Example(NamedTuple):
    """What a worker sends: a sample, or None where none was found, and what was refused on the way."""

    sample: Sample | None
    rejected: dict[str, str]


class ExampleSource:
    """The endless sequence of elements that all processes draw from: `elements[i]`, i from 0."""

    def __init__(self, records: RecordSource, config: DataConfig, seed: int, with_pose: bool = True):
        config.check()
        if not len(records):
            raise UserError(f"{config.path}: has no records")
        if records.kind == "pose_images" and config.num_frames != 1:
            raise UserError(
                f"data.num_frames={config.num_frames}, but {config.path} has images: data.num_frames=1"
            )
        self.records, self.config, self.seed, self.with_pose = records, config, seed, with_pose
        self._order = grain.MapDataset.range(len(records)).shuffle(seed=seed).repeat()  # each epoch anew
        self.most_bad = math.floor(config.max_corrupt_fraction * len(records) + 1e-9)  # 0.29 x 100 is 29
        # so many broken ones in a row are as good as never drawn if no more than allowed are broken
        share = self.most_bad / len(records)
        in_a_row = math.log(FALSE_ALARM_RATE) / math.log(share) if 0 < share < 1 else len(records)
        self.most_tries = min(self.most_bad + 1, math.ceil(in_a_row), len(records))

    def draw(self, index: int) -> ExampleSpec:
        """What chance decides about this element, without reading anything."""
        rng = np.random.default_rng([self.seed, index])
        record = self._order[index]
        assert record is not None  # which would mean: filtered out
        return ExampleSpec(record, rng.random() < self.config.caption_dropout, rng)

    def __getitem__(self, index: int) -> Example:
        draw = self.draw(index)
        rejected: dict[str, str] = {}
        for record in self._candidates(draw):
            name = f"record {record}"
            try:
                read = self.records[record]
                name = as_text(read["name"])
                sample = self.decode(read, draw.rng)
            except UserError as error:
                rejected[name] = reason(error).removeprefix(f"{name}: ")
            else:
                return Example(sample._replace(caption="") if draw.without_text else sample, rejected)
        return Example(None, rejected)

    def _candidates(self, draw: ExampleSpec) -> Iterator[int]:
        yield draw.record
        if self.most_tries > 1:
            others = (int(other) for other in draw.rng.permutation(len(self.records)) if other != draw.record)
            yield from islice(others, self.most_tries - 1)

    def decode(self, record: Record, rng: np.random.Generator) -> Sample:
        """UserError for a broken record."""
        config = self.config
        if self.records.kind == "pose_images":
            return decode_image(record, height=config.height, width=config.width, with_pose=self.with_pose)
        return decode_video(
            record,
            frames=config.num_frames,
            stride=config.stride,
            height=config.height,
            width=config.width,
            rng=rng,
        )


class Loader(Iterator[Batch]):
    """Batches of the given rows of each global batch, without end, from `start_step` on.

    `tokenize` gives the token ids int32 [l] of a caption; `with_pose=False` leaves out the poses of records.
    Worker processes begin with the first batch and end with `close`, at the end of a `with` block, or with
    this process, however it ends.
    Iterating raises TooManyBadFiles (each process of a pod counts the records that it drew itself), and
    UserError where a worker process dies.
    """

    def __init__(
        self,
        records: RecordSource,
        config: DataConfig,
        tokenize: Callable[[str], Int32[np.ndarray, " l"]],
        seed: int,
        rows: range,
        start_step: int = 0,
        with_pose: bool = True,
    ):
        self._elements = ExampleSource(records, config, seed, with_pose)
        if not rows or not set(rows) <= set(range(config.batch_size)):
            raise ValueError(f"rows {rows} are not rows of a batch of {config.batch_size}")
        self._tokenize, self._rows, self._step = tokenize, rows, start_step
        self._running: list[Any] = []  # Grain's iterator, or none before it is needed
        weakref.finalize(self, _close, self._running)
        self.rejected: dict[str, str] = {}
        """Records that were broken where this process drew them: name, reason."""

    def __next__(self) -> Batch:
        try:
            if not self._running:
                self._running.append(self._start())
            samples = [self._sample() for _ in self._rows]
        except BaseException:
            self.close()  # what was drawn of this batch is drawn again, should somebody go on
            raise
        self._step += 1
        return self._batch(samples)

    def state(self) -> dict[str, int | str]:
        """What a later loader needs to go on from here, ready for JSON."""
        elements = self._elements
        return {
            "step": self._step,
            "seed": elements.seed,
            "batch_size": elements.config.batch_size,
            "records": elements.records.fingerprint,
        }

    def restore(self, state: dict[str, int | str]) -> None:
        """Go on from a `state`, on any number of workers and rows, without decoding what came before.

        Raises UserError for the state of other records, seed or batch size: the order would be another.
        """
        ours = self.state()
        differs = [key for key in ours if key != "step" and state.get(key) != ours[key]]
        if differs:
            problem = "; ".join(f"{key} was {state.get(key)}, is {ours[key]}" for key in differs)
            raise UserError(f"{self._elements.config.path}: cannot go on with other data: {problem}")
        self.close()
        self._step = int(state["step"])

    def close(self) -> None:
        """End the worker processes. Iterating again begins new ones, with the batch that is due."""
        _close(self._running)

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> Iterator[Example]:
        workers, rows = self._elements.config.workers, self._rows
        first = self._step * len(rows)
        dataset = grain.MapDataset.range(first, sys.maxsize).map(partial(_element, self._elements, rows))
        # no threads beside a decoder: there is a process for each core
        stream = dataset.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        if workers:
            if not flags.FLAGS.is_parsed():  # Grain asks them, whether or not the program has any
                flags.FLAGS.mark_as_parsed()
            ahead = -(-len(rows) // workers)  # a batch; Grain holds as much again outside of the workers
            stream = stream.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=ahead), _in_worker
            )
        return iter(stream)

    def _sample(self) -> Sample:
        try:
            element = next(self._running[0])
        except RuntimeError as error:
            if "terminated unexpectedly" not in str(error):
                raise
            raise UserError(
                f"{self._elements.config.path}: a decoding process died, maybe for want of memory "
                f"(shared memory, /dev/shm, too); fewer data.workers need less. {reason(error)}"
            ) from error
        for name, why in element.rejected.items():
            if name not in self.rejected:
                logger.warning("%s: skipped, %s", name, why)
                self.rejected[name] = why
        if element.sample is None or len(self.rejected) > self._elements.most_bad:
            raise self._too_many(None if element.sample else len(element.rejected))
        return element.sample

    def _too_many(self, in_a_row: int | None) -> TooManyBadFiles:
        elements, bad = self._elements, list(self.rejected.items())
        some = "; ".join(f"{name}: {why}" for name, why in bad[:3]) + ("; ..." if len(bad) > 3 else "")
        return TooManyBadFiles(
            f"{elements.config.path}: {len(bad)} of {len(elements.records)} records are broken"
            + (f", {in_a_row} of them drawn in a row" if in_a_row else "")
            + f"; data.max_corrupt_fraction={elements.config.max_corrupt_fraction} allows {elements.most_bad}: {some}"
        )

    def _batch(self, samples: list[Sample]) -> Batch:
        video = np.stack([sample.video for sample in samples], dtype=np.float32, casting="unsafe")
        video /= 127.5
        video -= 1
        skeletons = [sample.skeleton for sample in samples if sample.skeleton is not None]
        skeleton = np.stack(skeletons, dtype=np.float32, casting="unsafe") / 255 if skeletons else None
        return Batch(video, np.stack([self._tokenize(sample.caption) for sample in samples]), skeleton)


def _element(elements: ExampleSource, rows: range, position: int) -> Example:
    """The element at a position of what is left when a process takes its rows only."""
    step, row = divmod(position, len(rows))
    return elements[step * elements.config.batch_size + rows[row]]


def _close(running: list[Any]) -> None:
    while running:
        running.pop().close()


def _in_worker(index: int, count: int) -> None:
    """What a worker process does first."""
    del index, count
    jax.config.update("jax_platforms", "cpu")  # Grain imports JAX: the accelerators are the trainer's
    exit_with_parent(signal.SIGINT, signal.SIGTERM)  # the trainer still wants its batch
