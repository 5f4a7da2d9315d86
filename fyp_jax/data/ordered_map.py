"""Futures in order: results come as their items do, however many of them are computed at a time."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ordered_map(submit: Callable[[T], Future[R]], items: Iterable[T], max_pending: int) -> Iterator[R]:
    """Results of `submit(item)` in the order of the items, with at most `max_pending` of them unfinished."""
    pending: deque[Future[R]] = deque()
    for item in items:
        pending.append(submit(item))
        if len(pending) == max_pending:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
