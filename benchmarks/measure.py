"""How benchmarks measure: compare the results of several implementations, then time them in turn.

An implementation whose results differ from the expected ones is not timed. The others take turns
within each round, in a random order, because machines are shared and their clocks change: only
what ran side by side is compared. Times are those of a wall clock on a CPU and of CUDA events on a
GPU, where short work is replayed from a CUDA graph on inputs that push each other out of the cache.
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
"""Whether a run trains in bfloat16 on this device, and so what is compared."""
DTYPE, ARITHMETIC = (torch.bfloat16, "bf16") if BF16 else (torch.float32, "float32")
REPLAYS = 3
"""Replays of a CUDA graph in a row: a GPU waits only for the first to be launched."""

Call = Callable[[], Any]
Build = Callable[[], Sequence[Call]]
"""Makes an implementation: calls that do the same work, each on its own set of inputs."""
Outputs = Tensor | Sequence[Tensor]


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
    """Further entries of its rows; see :data:`~benchmarks.results.Row`."""
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
        _measure_in_turn(benchmark, setup, {name: rows[name] for name in group})
        for name in group:
            keep(rows[name])
        if not together:
            free_memory()


def _measure_in_turn(benchmark: Benchmark, setup: Setup, rows: dict[str, Row]) -> None:
    """Fill the rows of implementations that take turns."""
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
        # In a fixed circle, each would meet the caches and the memory that the same other leaves.
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

    Returns what to time, how often to call it in a round, and how many times it does the work.
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

    Device work is included, and so is host work that the device has to wait for.
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

    With ``graph`` it replays them as one CUDA graph (on a GPU): neither starting a short kernel nor
    a warm cache counts then.
    """
    if not graph or DEVICE.type != "cuda":
        return calls[0] if len(calls) == 1 else lambda: [call() for call in calls]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):  # kernels are compiled and tuned, and workspaces allocated
            calls[0]()
    torch.cuda.synchronize()
    recording = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recording, stream=stream):
        outputs = [call() for call in calls]  # kept alive: each call writes to its own memory

    def replay() -> Any:
        recording.replay()
        return outputs, calls  # what the recorded calls hold has to live as long as the graph

    return replay


def synchronize() -> None:
    """Wait for a GPU's work; do nothing on a CPU."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def cache_bytes() -> int:
    """Return the size of the GPU's second-level cache, or 0 on a CPU."""
    return torch.cuda.get_device_properties(DEVICE).L2_cache_size if DEVICE.type == "cuda" else 0


def input_sets(num_bytes: int) -> int:
    """Return how many sets of inputs of ``num_bytes`` overflow the cache: 1 on a CPU, else 2 to 32.

    A CPU's inputs stay in its caches, as a training step leaves them there.
    """
    if DEVICE.type != "cuda":
        return 1
    return min(32, max(2, -(-4 * cache_bytes() // max(1, num_bytes))))


def reset_peak() -> None:
    """Start measuring peak memory anew."""
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_bytes() -> int:
    """Return the most memory allocated on a GPU since :func:`reset_peak`; 0 on a CPU."""
    return torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else 0


def free_memory() -> None:
    """Leave no compiled graphs and no cached memory for the next measurement."""
    torch.compiler.reset()
    gc.collect()
    torch.cuda.empty_cache()
