"""The endless sequence of examples that a run trains on.

All processes of a run read the same sequence: example `step * batch_size + row` is row `row` of the global
batch of `step`. An example depends on the records, the config, the seed and its own index alone, and not on
the process that decodes it. So a restart needs to know no more than the step.
"""

import math
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple, Protocol, runtime_checkable

import grain
import numpy as np

from fyp_jax.data.config import DataConfig
from fyp_jax.data.decoding import (
    LatentSample,
    Record,
    Sample,
    as_text,
    decode_image,
    decode_video,
    random_crop,
)
from fyp_jax.errors import UserError, reason

FALSE_ALARM_RATE = 1e-15
"""Highest probability that a run with no more corrupt records than allowed is stopped by many in a row."""


@runtime_checkable
class RecordSource(Protocol):
    """Random access to records, as `data.datasets` opens them. Workers get it by pickle."""

    kind: str
    """"pose_images", "captioned_videos" or "one_clip"."""
    fingerprint: str
    """Differs where the records differ."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...


@runtime_checkable
class RenderedSource(RecordSource, Protocol):
    """Records that are not decoded one by one: those of `data.synthetic_source`, `data.one_clip` and
    `data.latents`."""

    def check(self, config: DataConfig) -> None:
        """Raise UserError for a config that it cannot render."""
        ...

    def render(
        self, record: Record, config: DataConfig, rng: np.random.Generator, with_pose: bool
    ) -> Sample | LatentSample:
        """What a config asks for of a record. Raises UserError for a corrupt record."""
        ...


class ExampleSpec(NamedTuple):
    """The random choices of one example."""

    record_index: int
    drop_caption: bool
    rng: np.random.Generator
    """Chooses the window of frames, and the records that replace a corrupt one."""


class Example(NamedTuple):
    """One decoded example, and the corrupt records that were skipped for it."""

    sample: Sample | LatentSample | None
    """None where all records that were tried are corrupt."""
    rejected: dict[str, str]
    """Reason by record name."""


class ExampleSource:
    """The sequence of examples: `source[i]` for i from 0, without end.

    Each epoch has each record once, in an order of its own. Raises UserError for a config that is out of
    range or does not fit the records.
    """

    def __init__(self, records: RecordSource, config: DataConfig, seed: int, with_pose: bool = True):
        config.check()
        if not len(records):
            raise UserError(f"{config.source}: has no records")
        if records.kind == "pose_images" and config.num_frames != 1:
            raise UserError(
                f"data.num_frames={config.num_frames}, but {config.source} holds images: "
                "set data.num_frames=1"
            )
        if isinstance(records, RenderedSource):
            records.check(config)
        self.records, self.config, self.seed, self.with_pose = records, config, seed, with_pose
        # `repeat` shuffles each epoch into a new order
        self._order = grain.MapDataset.range(len(records)).shuffle(seed=seed).repeat()
        self.max_corrupt = math.floor(config.max_corrupt_fraction * len(records) + 1e-9)  # 0.29 x 100 is 29
        # If no more than these are corrupt, so many in a row have a probability of FALSE_ALARM_RATE.
        fraction = self.max_corrupt / len(records)
        in_a_row = math.log(FALSE_ALARM_RATE) / math.log(fraction) if 0 < fraction < 1 else len(records)
        self.max_attempts = min(self.max_corrupt + 1, math.ceil(in_a_row), len(records))

    def spec(self, index: int) -> ExampleSpec:
        """Make the random choices of an example, without reading a record."""
        rng = np.random.default_rng([self.seed, index])
        record_index = self._order[index]
        assert record_index is not None  # None would mean: filtered out
        return ExampleSpec(record_index, rng.random() < self.config.caption_dropout, rng)

    def __getitem__(self, index: int) -> Example:
        spec = self.spec(index)
        rejected: dict[str, str] = {}
        for record_index in self._candidates(spec):
            name = f"record {record_index}"
            try:
                record = self.records[record_index]
                name = as_text(record["name"])
                sample = self.decode(record, spec.rng)
            except UserError as error:
                rejected[name] = reason(error).removeprefix(f"{name}: ")
            else:
                return Example(sample.without_caption() if spec.drop_caption else sample, rejected)
        return Example(None, rejected)

    def _candidates(self, spec: ExampleSpec) -> Iterator[int]:
        yield spec.record_index
        if self.max_attempts > 1:
            order = spec.rng.permutation(len(self.records))
            others = (int(other) for other in order if other != spec.record_index)
            yield from islice(others, self.max_attempts - 1)

    def decode(self, record: Record, rng: np.random.Generator) -> Sample | LatentSample:
        """Decode or render a record as the config asks. Raises UserError for a corrupt record."""
        sample = self._decode_whole(record, rng)
        size = self.config.random_crop
        return sample if size is None or isinstance(sample, LatentSample) else random_crop(sample, size, rng)

    def _decode_whole(self, record: Record, rng: np.random.Generator) -> Sample | LatentSample:
        config = self.config
        if isinstance(self.records, RenderedSource):
            return self.records.render(record, config, rng, self.with_pose)
        if self.records.kind == "pose_images":
            return decode_image(record, height=config.height, width=config.width, with_pose=self.with_pose)
        return decode_video(
            record,
            num_frames=config.num_frames,
            stride=config.stride,
            height=config.height,
            width=config.width,
            rng=rng,
        )
