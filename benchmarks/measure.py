"""Measurement: check the results of several implementations, then time them alternately.

An implementation with unexpected results is not timed. The others take turns within each round, in
a random order, because other load and clock rates change over time. Times are wall-clock times on a
CPU and CUDA events on a GPU, where short work is replayed from a CUDA graph on inputs that evict
each other from the cache.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.results import Row, failures_in
from ivcl_fast.training.hardware import has_fast_bf16

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BF16 = has_fast_bf16(DEVICE)
"""Whether a run trains in bfloat16 on this device; benchmarks use the same dtype."""
DTYPE, ARITHMETIC = (torch.bfloat16, "bf16") if BF16 else (torch.float32, "float32")
REPLAYS = 3
"""Number of consecutive replays of a CUDA graph: the GPU waits only for the first launch."""

Call = Callable[[], Any]
Build = Callable[[], Sequence[Call]]
"""Builds an implementation: calls that do the same work on different sets of inputs."""
Outputs = Tensor | Sequence[Tensor]


class ParityError(AssertionError):
    """The results of an implementation differ from the expected results."""


@dataclass(frozen=True)
class Setup:
    """A benchmark that is ready to run."""

    implementations: dict[str, Build]
    expected: Outputs | None = None
    """Expected results of each implementation's first call; None if the set-up has checked them."""


@dataclass(frozen=True)
class Benchmark:
    """One computation and the names of its implementations; the first is this project's.

    ``setup`` makes inputs and expected results when the benchmark runs.
    """

    name: str
    implementations: tuple[str, ...]
    setup: Callable[[], Setup]
    tolerance: float = 0.02
    """Largest relative difference from the expected results; the default is bfloat16's rounding."""
    facts: Row = field(default_factory=dict)
    """Further entries of the rows; see :data:`~benchmarks.results.Row`."""
    rounds: int = 10
    max_seconds: float = 4.0
    """Time limit; at least three rounds are run."""
    window: float = 0.0
    """Seconds per implementation and round; by default it is called once, and a graph
    :data:`REPLAYS` times."""
    warm_up: int = 2
    """Number of calls before the first round; on a CPU only one if it takes over a second."""
    graph: bool = False
    """Replay short work from a CUDA graph on a GPU, to leave out the time of launches."""


def check_parity(got: Outputs, expected: Outputs, tolerance: float) -> float:
    """Return the largest relative difference between two sets of tensors.

    Compares, for each tensor, the norm of the difference to the expected norm, and the difference
    of each element to that element plus the largest element. Raises :class:`ParityError` if a ratio
    exceeds ``tolerance`` or is NaN, or if shapes differ.
    """
    pairs = [([x] if isinstance(x, Tensor) else x) for x in (got, expected)]
    largest = 0.0
    for a, b in zip(*pairs, strict=True):
        if a.shape != b.shape:
            raise ParityError(f"result of shape {[*a.shape]}, expected {[*b.shape]}")
        a, b = a.detach().float(), b.detach().float()
        error, tiny = (a - b).abs(), torch.finfo(torch.float32).tiny
        by_norm = error.norm() / b.norm().clamp(min=tiny)
        by_element = (error / (b.abs() + b.abs().max()).clamp(min=tiny)).max()
        for difference in (by_norm.item(), by_element.item()):
            if not difference <= tolerance:
                raise ParityError(
                    f"relative difference: expected at most {tolerance:g}, got {difference:.2g}"
                )
            largest = max(largest, difference)
    return largest


def measure(
    benchmark: Benchmark, keep: Callable[[Row], None], together: bool = DEVICE.type == "cpu"
) -> None:
    """Check and time every implementation, and pass each row to ``keep``.

    With ``together=False`` they run one after the other and free their memory, so that a failure or
    full memory loses as few rows as possible.
    """
    torch.compiler.reset()  # earlier graphs count towards its limit
    names = benchmark.implementations
    rows = {name: {"benchmark": benchmark.name, "name": name, **benchmark.facts} for name in names}
    problem: Row = {}
    with failures_in(problem):
        setup = benchmark.setup()
    if problem:
        for row in rows.values():
            keep(row | problem)
        return
    for group in [names] if together else [[name] for name in names]:
        _measure_in_turn(benchmark, setup, {name: rows[name] for name in group})
        for name in group:
            keep(rows[name])
        if not together:
            free_memory()


def _measure_in_turn(benchmark: Benchmark, setup: Setup, rows: dict[str, Row]) -> None:
    """Fill in the rows of implementations that take turns."""
    ready: dict[str, tuple[Call, int, int]] = {}
    for name, row in rows.items():
        with failures_in(row):
            ready[name] = _prepare(benchmark, setup.implementations[name], setup.expected, row)
    times: dict[str, list[float]] = {name: [] for name in ready}
    order, begin = list(ready), time.perf_counter()
    for done in range(benchmark.rounds):
        if done >= 3 and time.perf_counter() - begin > benchmark.max_seconds:
            break
        for name in [name for name in order if "error" not in rows[name]]:
            with failures_in(rows[name]):
                call, count, sets = ready[name]
                times[name].append(float(f"{seconds(call, count) / sets:.6g}"))
        # In a fixed order, each would always find the caches and memory left by the same one.
        order = random.Random(done).sample(order, len(order))
    for name, row in rows.items():
        if times.get(name) and "error" not in row:
            median = statistics.median(times[name])
            spread = (max(times[name]) - min(times[name])) / median
            row |= {"seconds": median, "spread": round(spread, 4), "times": times[name]}


def _prepare(
    benchmark: Benchmark, build: Build, expected: Outputs | None, row: Row
) -> tuple[Call, int, int]:
    """Build one implementation, compare its results and warm it up.

    Returns the call to time, its number of calls per round, and how often it does the work.
    """
    reset_peak()
    begin = time.perf_counter()
    calls = build()
    results = calls[0]()
    synchronize()
    row["first_seconds"] = time.perf_counter() - begin
    if expected is not None:
        row["difference"] = check_parity(results, expected, benchmark.tolerance)
    del results
    once = 0.0
    for _ in range(benchmark.warm_up):
        once = seconds(calls[0])
        if once > 1 and DEVICE.type == "cpu":
            break
    row["peak_bytes"] = peak_bytes()
    least = REPLAYS if benchmark.graph and DEVICE.type == "cuda" else 1
    count = max(least, round(benchmark.window / once)) if once else 1
    return in_turn(calls, benchmark.graph), count, len(calls)


# --- Timing ---------------------------------------------------------------------------------------


def seconds(call: Call, count: int = 1) -> float:
    """Return the seconds of one call, as the mean over ``count`` calls in a row.

    This includes device work and host work that the device waits for.
    """
    if DEVICE.type != "cuda":
        begin = time.perf_counter()
        for _ in range(count):
            call()
        return (time.perf_counter() - begin) / count
    torch.cuda.synchronize()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(count):
        call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3 / count


def in_turn(calls: Sequence[Call], graph: bool) -> Call:
    """Return a function that makes all ``calls``, which do the same work on different inputs.

    With ``graph`` it replays them as one CUDA graph (on a GPU), without the time of launching short
    kernels and without warm caches.
    """
    if not graph or DEVICE.type != "cuda":
        return calls[0] if len(calls) == 1 else lambda: [call() for call in calls]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):  # compile and tune kernels, allocate workspaces
            calls[0]()
    torch.cuda.synchronize()
    recording = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recording, stream=stream):
        outputs = [call() for call in calls]  # kept alive: each call writes to its own memory

    def replay() -> Any:
        recording.replay()
        return outputs, calls  # the graph needs their tensors

    return replay


def synchronize() -> None:
    """Wait for a GPU's work; do nothing on a CPU."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def input_sets(num_bytes: int) -> int:
    """Return the number of input sets of ``num_bytes`` that overflow the cache: 2 to 32 on a GPU.

    1 on a CPU, where a training step also finds its inputs in the caches.
    """
    if DEVICE.type != "cuda":
        return 1
    cache = torch.cuda.get_device_properties(DEVICE).L2_cache_size
    return min(32, max(2, -(-4 * cache // max(1, num_bytes))))


def reset_peak() -> None:
    """Reset the peak memory."""
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_bytes() -> int:
    """Return the peak memory allocated on a GPU since :func:`reset_peak`; 0 on a CPU."""
    return torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else 0


def free_memory() -> None:
    """Free compiled graphs and cached memory."""
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()
