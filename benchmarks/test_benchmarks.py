"""The benchmarks for pytest: a test for every implementation of each.

pytest-benchmark shows the rounds that :func:`benchmarks.measure.measure` timed.
"""

from __future__ import annotations

import sys
from collections import deque
from dataclasses import replace
from itertools import accumulate, chain

import pytest

from benchmarks import accelerate, data, mae, ops, steps
from benchmarks.conftest import ROWS
from benchmarks.measure import DEVICE, Benchmark, measure


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise the test with all benchmarks, and timers that replay given ticks."""
    benchmarks = [*ops.benchmarks(), *steps.benchmarks(), mae.hugging_face_benchmark()]
    if DEVICE.type == "cpu":  # `make gpu-check` measures the data of a GPU
        benchmarks += data.BENCHMARKS
    if (folder := metafunc.config.getoption("--mae")) is not None:
        benchmarks.append(mae.public_benchmark(folder))
    if metafunc.config.getoption("--accelerate"):
        benchmarks = [*accelerate.benchmarks()]
    runs = [run_of(case, name) for case in benchmarks for name in case.implementations]
    metafunc.parametrize("case, implementation, ticks", runs)


def run_of(case: Benchmark, name: str):
    """Return the test of an implementation, and the ticks of its timer."""
    ticks: deque[float] = deque()

    def timer() -> float:
        return ticks.popleft() if ticks else 0.0

    mark = pytest.mark.benchmark(group=case.name, timer=timer)
    return pytest.param(case, name, ticks, id=f"{case.name}-{name}", marks=mark)


def test_benchmark(case: Benchmark, implementation: str, ticks: deque, benchmark, request):
    """Run a benchmark with its first implementation; report the rounds of one implementation."""
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
    ends = [*accumulate(row["times"])]
    # The timer is read at the beginning and the end of each round.
    ticks.extend(chain(*zip([0.0, *ends[:-1]], ends, strict=True)))
    benchmark.pedantic(lambda: None, rounds=len(row["times"]), iterations=1)
