"""Wall times of functions that are compared with each other."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax


def seconds(function: Callable[[], Any]) -> float:
    """Wall time of one call, until its arrays are computed."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def interleaved_times(functions: Mapping[str, Callable[[], Any]], runs: int) -> dict[str, list[float]]:
    """Seconds of `runs` calls of each function. The calls are interleaved, since a machine's speed drifts.

    A first call of each function, which compiles it, is not counted.
    """
    for function in functions.values():
        seconds(function)
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(runs):
        for name, function in functions.items():
            times[name].append(seconds(function))
    return times
