"""Clips that are rendered once and kept (`data.pool_size`): which examples come, and what is left behind."""

import multiprocessing
import os
import signal
import tempfile
from pathlib import Path

import numpy as np
import pytest

from fyp_jax.data.config import DataConfig
from fyp_jax.data.loader import Loader
from fyp_jax.data.synthetic_source import open_synthetic
from fyp_jax.errors import UserError
from fyp_jax.types import Batch

BATCH, POOL = 2, 4


def tokens(caption: str) -> np.ndarray:
    """A caption's bytes, so that captions can be compared."""
    return np.frombuffer(caption.encode().ljust(100), np.uint8).astype(np.int32)


def make_loader(pool_size: int | None, workers: int = 1, rows: range = range(BATCH)) -> Loader:
    config = DataConfig(
        path="synthetic://pose_images", num_frames=1, height=64, width=64, batch_size=BATCH, workers=workers,
        pool_size=pool_size, caption_dropout=0.5,
    )  # fmt: skip
    return Loader(open_synthetic("synthetic://pose_images"), config, tokens, seed=3, rows=rows)


def batches(loader: Loader, count: int) -> list[Batch]:
    with loader:
        return [next(loader) for _ in range(count)]


def as_keys(batch: Batch) -> list[bytes]:
    """One key for each example of a batch."""
    rows = range(len(batch.video))
    return [b"".join(np.ascontiguousarray(part[row]).tobytes() for part in batch) for row in rows]


def all_keys(batches: list[Batch]) -> list[list[bytes]]:
    return [as_keys(batch) for batch in batches]


@pytest.fixture(scope="module")
def three_passes() -> list[Batch]:
    return batches(make_loader(POOL), 3 * POOL // BATCH)


def test_first_pass_of_a_pool_is_what_a_run_without_it_sees(three_passes):
    rendered = batches(make_loader(None, workers=0), POOL // BATCH)
    assert [as_keys(batch) for batch in three_passes[: POOL // BATCH]] == [
        as_keys(batch) for batch in rendered
    ]


def test_each_later_pass_has_the_same_examples_in_another_order(three_passes):
    keys = [key for batch in three_passes for key in as_keys(batch)]
    passes = [keys[i : i + POOL] for i in range(0, len(keys), POOL)]
    assert len(set(passes[0])) == POOL
    assert all(sorted(one) == sorted(passes[0]) for one in passes)
    assert passes[1] != passes[0] or passes[2] != passes[0]


@pytest.mark.slow
def test_two_workers_and_a_resumed_run_give_the_same_batches(three_passes):
    resumed = make_loader(POOL, workers=2)
    resumed.restore({**resumed.state(), "step": 3})
    expected = all_keys(three_passes[3:])
    assert all_keys(batches(resumed, len(expected))) == expected


@pytest.mark.slow
def test_a_process_with_one_row_of_each_batch_gets_that_row(three_passes):
    second = batches(make_loader(POOL // BATCH, rows=range(1, BATCH)), POOL // BATCH)
    assert [as_keys(batch)[0] for batch in second] == [
        as_keys(batch)[1] for batch in three_passes[: POOL // BATCH]
    ]


def test_a_pool_leaves_no_file_and_no_process(three_passes):
    assert not list(Path(tempfile.gettempdir()).glob("fyp_jax-pool-*"))
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_a_worker_that_dies_ends_the_run_with_one_line():
    with make_loader(100_000) as loader:
        next(loader)
        for child in multiprocessing.active_children():
            assert child.pid is not None
            os.kill(child.pid, signal.SIGKILL)
        with pytest.raises(UserError, match="a process that renders the pool died"):
            all(map(bool, loader))


def test_a_run_is_not_resumed_with_a_pool_of_another_size():
    state = make_loader(None).state()
    with pytest.raises(UserError, match="pool_size was None, is 4"):
        make_loader(POOL).restore(state)
    with pytest.raises(UserError, match="pool_size was 4, is None"):
        make_loader(None).restore({**state, "pool_size": POOL})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"path": "records/x", "pool_size": 5}, "records/x is not synthetic://"),
        ({"path": "synthetic://pose_images", "pool_size": 0}, "data.pool_size=0 must be at least 1"),
    ],
)
def test_a_pool_that_cannot_be_is_refused(fields, message):
    with pytest.raises(UserError, match=message):
        DataConfig(**fields).check()
