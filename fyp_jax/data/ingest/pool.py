"""`make_example` over many items, on a pool of worker processes, with results in the order of the items."""

import itertools
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
from fyp_jax.data.worker_process import exit_with_parent
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
    pending: deque[tuple[str, Future[ExampleResult]]] = deque()
    try:
        for item in itertools.chain(items, itertools.repeat(None)):
            if item is not None:
                pending.append((item.name, pool.submit(make_example, kind, item)))
            elif not pending:
                return
            if item is None or len(pending) == max_pending:
                result = pending[0][1].result()
                pending.popleft()
                yield result
    except BrokenProcessPool as error:
        where = f" at {pending[0][0]} or one of the next {max_pending} items" if pending else ""
        raise UserError(
            f"a worker process died{where}, perhaps out of memory; run the same command again to resume, "
            "with fewer --workers to use less memory"
        ) from error


def _init_worker() -> None:
    exit_with_parent(signal.SIGINT)  # the parent process ends the pool
