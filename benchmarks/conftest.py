"""``pytest benchmarks/ --benchmark-only``: run benchmarks side by side, and sum them up.

pytest-benchmark shows the rounds that :func:`benchmarks.benchmark.measure` timed.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import machine, summary
from benchmarks.benchmark import Benchmark, measure
from benchmarks.results import Results, Row
from benchmarks.timing import DEVICE
from ivcl_fast.training.hardware import tune_malloc

_rows: dict[str, dict[str, Row]] = {}
"""What was measured, by benchmark and implementation."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run the slow benchmarks, too")
    parser.addoption(
        "--mae", metavar="FOLDER", type=Path, help="a copy of the public MAE code, to compare with"
    )
    parser.addoption(
        "--seconds", metavar="N", type=float,
        help="measure each benchmark for this long, for example on a busy machine",
    )  # fmt: skip
    parser.addoption(
        "--results", metavar="FILE.json", type=Path, help="write rows that benchmarks.report reads"
    )


def pytest_configure(config: pytest.Config) -> None:
    if (folder := config.getoption("--mae")) is not None:
        from benchmarks import public_mae

        public_mae.find_model_file(folder)
    torch.set_num_threads(torch.get_num_threads())  # from now on it stays what it is
    if DEVICE.type == "cpu":
        tune_malloc()  # as the trainer does; the baselines get it as well


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


def cases(benchmarks: list[Benchmark]) -> Any:
    """Parametrise a test by every implementation of every benchmark, each with its own timer."""
    found = [
        pytest.param(
            case, name, timer, id=f"{case.name}-{name}",
            marks=pytest.mark.benchmark(group=case.name, timer=timer),
        )
        for case in benchmarks
        for name in case.implementations
        for timer in [Replay()]
    ]  # fmt: skip
    return pytest.mark.parametrize("case, implementation, replay", found)


@pytest.fixture
def run_case(benchmark, request):
    """Run a benchmark when the first of its implementations is asked for; show one's rounds."""

    def run(case: Benchmark, implementation: str, replay: Replay) -> None:
        if case.slow and not request.config.getoption("--full"):
            pytest.skip("only with --full")
        if (seconds := request.config.getoption("--seconds")) is not None:
            case = replace(case, max_seconds=seconds, rounds=sys.maxsize)
        if case.name not in _rows:
            rows = _rows[case.name] = {}
            measure(case, lambda row: rows.update({row["name"]: row}))
        row = _rows[case.name][implementation]
        if "skipped" in row:
            pytest.skip(row["skipped"])
        assert "error" not in row, row["error"]
        benchmark.extra_info.update(row)
        replay.load(row["times"])
        benchmark.pedantic(lambda: None, rounds=len(row["times"]), iterations=1)

    return run


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    """Print medians and ratios, and write ``--results``."""
    if not _rows:
        return
    rows = [row for found in _rows.values() for row in found.values()]
    results = Results("pytest benchmarks/ --benchmark-only", machine=machine.describe(), rows=rows)
    terminalreporter.section("this project's implementations against their baselines")
    for line in summary.table(rows, results.machine):
        terminalreporter.line(line)
    if (file := config.getoption("--results")) is not None:
        results.write(file)
        terminalreporter.line(f"written: {file}")
