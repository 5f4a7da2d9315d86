"""Wall time of things that are compared with each other."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax


def seconds(function: Callable[[], Any]) -> float:
    """Of one call, until its arrays are there."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def in_turns(functions: Mapping[str, Callable[[], Any]], runs: int) -> dict[str, list[float]]:
    """Seconds of each of `runs` calls, one function after the other in each turn, as machines drift.

    A first call of each, which compiles, is not counted.
    """
    for function in functions.values():
        seconds(function)
    took: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(runs):
        for name, function in functions.items():
            took[name].append(seconds(function))
    return took
