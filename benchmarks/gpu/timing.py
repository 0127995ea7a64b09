"""Times of device work: graphs replayed for short kernels, inputs that are not in the cache."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.race import DEVICE, recorded

Call = Callable[[], Any]


def cache_bytes() -> int:
    """The card's second-level cache."""
    if DEVICE.type != "cuda":
        return 0
    return torch.cuda.get_device_properties(DEVICE).L2_cache_size


def input_sets(num_bytes: int) -> int:
    """How many sets of inputs of ``num_bytes`` push each other out of the cache."""
    return min(32, max(2, -(-4 * cache_bytes() // max(1, num_bytes))))


def synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def short(calls: Sequence[Call], repeats: int) -> float:
    """Median seconds of one of ``calls``, the same work on different inputs, done in turn.

    On a GPU they are recorded in one graph, outputs kept apart, so that neither starting them nor
    the cache counts.
    """
    replay = recorded(calls) if DEVICE.type == "cuda" else lambda: [call() for call in calls]
    replay()
    times = []
    for _ in range(repeats):
        if DEVICE.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            replay()
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end) / 1e3)
        else:
            begin = time.perf_counter()
            replay()
            times.append(time.perf_counter() - begin)
    return statistics.median(times) / len(calls)


def long(call: Call, seconds: float, windows: int = 5) -> tuple[float, float]:
    """Median seconds of one call among calls that follow each other, host work included.

    Also the spread over windows: the largest less the smallest, of the median.
    """
    once = _window(call, 2)
    count = max(1, round(seconds / windows / once))
    times = [_window(call, count) for _ in range(windows)]
    median = statistics.median(times)
    return median, (max(times) - min(times)) / median


def _window(call: Call, count: int) -> float:
    synchronize()
    begin = time.perf_counter()
    for _ in range(count):
        call()
    synchronize()
    return (time.perf_counter() - begin) / count
