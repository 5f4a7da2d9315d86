"""`make_example` over many items, on a pool of worker processes, with results in the order of the items."""

import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial

from fyp_jax.data.ingest.examples import ExampleResult, make_example
from fyp_jax.data.ingest.items import Item
from fyp_jax.data.ordered_map import ordered_map
from fyp_jax.data.worker_process import set_up_worker
from fyp_jax.errors import UserError

ITEMS_PER_WORKER = 4  # items in flight for each worker: running, or waiting in its queue

MapExamples = Callable[[Iterable[Item]], Iterator[ExampleResult]]


@contextmanager
def example_pool(kind: str, workers: int) -> Iterator[MapExamples]:
    """Yield a function that maps items to results in order; one worker is this process.

    The map raises UserError where a worker process dies.
    """
    if workers == 1:
        yield partial(map, partial(make_example, kind))
        return
    # spawned: TFDS and FFmpeg have threads, which do not survive a fork
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_init_worker)
    try:
        yield partial(_ordered_map, pool, kind, ITEMS_PER_WORKER * workers)
    finally:
        pool.shutdown(cancel_futures=True)


def _ordered_map(
    pool: ProcessPoolExecutor, kind: str, max_pending: int, items: Iterable[Item]
) -> Iterator[ExampleResult]:
    names: deque[str] = deque()

    def submit(item: Item) -> Future[ExampleResult]:
        names.append(item.name)
        return pool.submit(make_example, kind, item)

    try:
        for result in ordered_map(submit, items, max_pending):
            names.popleft()
            yield result
    except BrokenProcessPool as error:
        where = f" at {names[0]} or one of the next {max_pending} items" if names else ""
        raise UserError(
            f"a worker process died{where}, perhaps out of memory; run the same command again to resume, "
            "with fewer --workers to use less memory"
        ) from error


def _init_worker() -> None:
    set_up_worker(signal.SIGINT)  # the parent process ends the pool
