"""A benchmark: several implementations of one computation, compared first and then timed.

An implementation whose results differ from the expected ones is not timed. The others take turns
within each round, in rotating order, because machines are shared and their clocks change: only what
ran side by side is compared.
"""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks import timing
from benchmarks.results import Row, failures_in
from benchmarks.timing import Call

Outputs = Tensor | Sequence[Tensor]
REPLAYS = 3
"""Replays of a CUDA graph in a row: a GPU waits only for the first to be launched."""
Build = Callable[[], Sequence[Call]]
"""Makes an implementation: calls that do the same work, each on its own set of inputs."""


def one_call(call: Call) -> Build:
    """An implementation of one call, which has its inputs already."""
    return lambda: [call]


class ParityError(AssertionError):
    """An implementation computes something else than it should."""


@dataclass(frozen=True)
class Setup:
    """A benchmark that is ready to run."""

    implementations: dict[str, Build]
    expected: Outputs | None = None
    """What each implementation's first call has to return; None where the set-up compared them."""


@dataclass(frozen=True)
class Benchmark:
    """One computation and the names of its implementations, of which the first is this project's.

    ``setup`` makes inputs and expected results when the benchmark is run, not before.
    """

    name: str
    implementations: tuple[str, ...]
    setup: Callable[[], Setup]
    tolerance: float = 0.02
    """Largest relative difference from the expected results; the default is bfloat16's rounding."""
    facts: Row = field(default_factory=dict)
    """What else its rows say, such as shapes, ``flops``, and the ``bytes`` that the best possible
    implementation reads and writes; see :data:`~benchmarks.results.Row`."""
    rounds: int = 10
    max_seconds: float = 4.0
    """Rounds end after this time, but not before there are three."""
    window: float = 0.0
    """Seconds that each implementation runs for in a round; by default it is called once, a graph
    :data:`REPLAYS` times."""
    warm_up: int = 2
    """Calls before the first round; on a CPU a single one if it takes more than a second."""
    graph: bool = False
    """Replay the work from a CUDA graph on a GPU: starting it takes as long as the work itself."""
    slow: bool = False
    """Measured by pytest only with ``--full``."""


def check_parity(got: Outputs, expected: Outputs, tolerance: float) -> float:
    """Return the largest relative difference between two sets of tensors.

    Two numbers are computed for each tensor: the norm of the difference relative to the norm
    expected, and the largest difference of an element relative to that element plus the largest
    element. Raises :class:`ParityError` if either exceeds ``tolerance`` or is NaN, or if shapes
    differ.
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
                    f"results differ by {difference:.2g} of their size, allowed is {tolerance:g}"
                )
            largest = max(largest, difference)
    return largest


def measure(benchmark: Benchmark, keep: Callable[[Row], None], together: bool = True) -> None:
    """Check and time every implementation, and hand each one's row to ``keep``.

    With ``together=False`` they run one after the other and leave no memory behind, so that a
    failure or a full memory costs as few rows as possible.
    """
    torch.compiler.reset()  # graphs that earlier benchmarks compiled count towards its limit
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
        for row in _measured(benchmark, setup, {name: rows[name] for name in group}):
            keep(row)
        if not together:
            free_memory()


def _measured(benchmark: Benchmark, setup: Setup, rows: dict[str, Row]) -> Iterator[Row]:
    ready: dict[str, tuple[Call, int, int]] = {}
    for name, row in rows.items():
        with failures_in(row):
            ready[name] = _prepared(benchmark, setup, name, row)
    times: dict[str, list[float]] = {name: [] for name in ready}
    order, begin = list(ready), time.perf_counter()
    for done in range(benchmark.rounds):
        if done >= 3 and time.perf_counter() - begin > benchmark.max_seconds:
            break
        for name in [name for name in order if "error" not in rows[name]]:
            with failures_in(rows[name]):
                call, count, sets = ready[name]
                times[name].append(float(f"{timing.seconds(call, count) / sets:.6g}"))
        # In a fixed circle, each would meet the caches and the memory that the same other leaves.
        order = random.Random(done).sample(order, len(order))
    for name, row in rows.items():
        if times.get(name) and "error" not in row:
            median = statistics.median(times[name])
            spread = (max(times[name]) - min(times[name])) / median
            row |= {"seconds": median, "spread": round(spread, 4), "times": times[name]}
        yield row


def _prepared(benchmark: Benchmark, setup: Setup, name: str, row: Row) -> tuple[Call, int, int]:
    """Build one implementation, compare its results and warm it up.

    Returns what to time, how often to call it in a round, and how many times it does the work.
    """
    timing.reset_peak()
    begin = time.perf_counter()
    calls = setup.implementations[name]()
    results = calls[0]()
    timing.synchronize()
    row["first_seconds"] = time.perf_counter() - begin
    if setup.expected is not None:
        row["difference"] = check_parity(results, setup.expected, benchmark.tolerance)
    del results
    once = 0.0
    for _ in range(benchmark.warm_up):
        once = timing.seconds(calls[0])
        if once > 1 and timing.DEVICE.type == "cpu":
            break
    row["peak_bytes"] = timing.peak_bytes()
    least = REPLAYS if benchmark.graph and timing.DEVICE.type == "cuda" else 1
    count = max(least, round(benchmark.window / once)) if once else 1
    return timing.in_turn(calls, benchmark.graph), count, len(calls)


def free_memory() -> None:
    """Leave no compiled graphs and no cached memory for the next measurement."""
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()
