"""The benchmarks that pytest runs: a test for every implementation of each.

pytest-benchmark shows the rounds that :func:`benchmarks.benchmark.measure` timed.
"""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from benchmarks import data, ops, public_mae, steps
from benchmarks.benchmark import Benchmark, measure
from benchmarks.conftest import ROWS
from benchmarks.timing import DEVICE


class Replay:
    """A timer for pytest-benchmark that returns rounds which were timed before."""

    def __init__(self) -> None:
        self._ticks: list[float] = []

    def load(self, seconds: list[float]) -> None:
        now = 0.0
        for duration in seconds:
            self._ticks += [now, now + duration]
            now += duration

    def __call__(self) -> float:
        return self._ticks.pop(0) if self._ticks else 0.0


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give the test all benchmarks, and each of its runs a timer of its own."""
    benchmarks = [*ops.BENCHMARKS, *steps.BENCHMARKS]
    if DEVICE.type == "cpu":  # `make gpu-check` measures the data of a GPU
        benchmarks += data.BENCHMARKS
    if (folder := metafunc.config.getoption("--mae")) is not None:
        benchmarks.append(public_mae.mae_benchmark(folder))
    runs = [
        pytest.param(
            case, name, timer, id=f"{case.name}-{name}",
            marks=pytest.mark.benchmark(group=case.name, timer=timer),
        )
        for case in benchmarks
        for name in case.implementations
        for timer in [Replay()]
    ]  # fmt: skip
    metafunc.parametrize("case, implementation, replay", runs)


def test_benchmark(case: Benchmark, implementation: str, replay: Replay, benchmark, request):
    """Run a benchmark when the first of its implementations is asked for; show one's rounds."""
    if case.slow and not request.config.getoption("--full"):
        pytest.skip("only with --full")
    if (seconds := request.config.getoption("--seconds")) is not None:
        case = replace(case, max_seconds=seconds, rounds=sys.maxsize)
    if case.name not in ROWS:
        rows = ROWS[case.name] = {}
        measure(case, lambda row: rows.update({row["name"]: row}))
    row = ROWS[case.name][implementation]
    if "skipped" in row:
        pytest.skip(row["skipped"])
    assert "error" not in row, row["error"]
    benchmark.extra_info.update(row)
    replay.load(row["times"])
    benchmark.pedantic(lambda: None, rounds=len(row["times"]), iterations=1)
