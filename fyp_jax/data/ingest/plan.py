"""Which items go into which shard. That depends on the listing alone, so all runners write equal shards."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from fyp_jax.data.ingest.items import Blob, Caption, Item


class PlannedItem(NamedTuple):
    """An item with the shard that it belongs to."""

    shard: int
    item: Item
    last: bool
    """Whether it is the last one of its shard."""


def plan_items(items: Iterable[Item], shard_bytes: int) -> Iterator[PlannedItem]:
    """Divide items into shards in their order: a shard is full once the files of its items have
    `shard_bytes`."""
    shard = size = 0
    before: Item | None = None
    for item in items:
        if before is not None:
            size += _bytes(before)
            full = size >= shard_bytes
            yield PlannedItem(shard, before, full)
            if full:
                shard, size = shard + 1, 0
        before = item
    if before is not None:
        yield PlannedItem(shard, before, True)


def plan_folder(work: Path) -> Path:
    """Folder of the plan of an unfinished dataset."""
    return work.with_suffix(".plan")


def write_plan(folder: Path, planned: Iterable[PlannedItem], done: Iterable[int]) -> list[int]:
    """Write the items of each shard that is not done to a file of its own; gives the numbers of these
    shards."""
    folder.mkdir(parents=True, exist_ok=True)
    done, written, lines = set(done), [], []
    for shard, item, last in planned:
        if shard in done:
            continue
        lines.append(json.dumps(item) + "\n")
        if last:
            _plan_file(folder, shard).write_text("".join(lines))
            written.append(shard)
            lines = []
    return written


def read_plan(folder: Path, shard: int) -> Iterator[Item]:
    """The items of a shard that `write_plan` wrote."""
    with open(_plan_file(folder, shard)) as lines:
        for line in lines:
            name, media, captions, skeleton, keypoints, problem = json.loads(line)
            yield Item(
                name,
                _blob(media),
                tuple(Caption(*caption) for caption in captions),
                _blob(skeleton),
                _blob(keypoints) if isinstance(keypoints, list) else keypoints,
                problem,
            )


def _blob(fields: list | None) -> Blob | None:
    return None if fields is None else Blob(*fields)


def _plan_file(folder: Path, shard: int) -> Path:
    return folder / f"{shard:05d}.jsonl"


def _bytes(item: Item) -> int:
    return sum(field.size for field in (item.media, item.skeleton, item.keypoints) if isinstance(field, Blob))
