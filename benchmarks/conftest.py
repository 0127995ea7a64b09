"""``pytest benchmarks/ --benchmark-only``: ours beside its rivals, on a GPU if there is one.

``--full`` runs every shape. One round of a race times each contestant once, so a table's rows were
measured side by side; the ratio to ours is in each name's ``ours_is_faster_by``.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import public_mae
from benchmarks.race import DEVICE, Race, Replay, ceilings, machine
from ivcl_fast.training.hardware import tune_malloc

_raced: list[Race] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="benchmark every shape")
    parser.addoption(
        "--mae", metavar="FOLDER", type=Path, help="a copy of the public MAE code, as a rival"
    )


def pytest_configure(config: pytest.Config) -> None:
    if (folder := config.getoption("--mae")) is not None:
        public_mae.find(folder)
    torch.set_num_threads(torch.get_num_threads())  # from now on it stays what it is
    if DEVICE.type == "cpu":
        tune_malloc()  # as training does; for the rivals as well


def race_cases(races: list[Race]) -> tuple[tuple[str, ...], list[Any]]:
    """Parameters of a test, (race, contestant), each with a timer of its own."""
    cases = [
        pytest.param(
            race, name, timer, id=f"{race.name}-{name}",
            marks=pytest.mark.benchmark(group=race.name, timer=timer),
        )
        for race in races
        for name in race.names
        for timer in [Replay()]
    ]  # fmt: skip
    return ("race", "contestant", "replay"), cases


def race_tests(races: list[Race]) -> Any:
    """Parametrises a test by :func:`race_cases`."""
    return pytest.mark.parametrize(*race_cases(races))


@pytest.fixture
def run_race(benchmark, request):
    """Runs a race, or takes the rounds of one that was run, and hands them to the table."""

    def run(race: Race, contestant: str, replay: Replay) -> None:
        if race.slow and not request.config.getoption("--full"):
            pytest.skip("only with --full")
        times = race.times(contestant)
        if race not in _raced:
            _raced.append(race)
        benchmark.extra_info.update(race.facts(contestant, ceilings()))
        replay.load(times)
        benchmark.pedantic(lambda: None, rounds=len(times), iterations=1)

    return run


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    machine_info["ivcl_fast"] = machine()


def pytest_terminal_summary(terminalreporter) -> None:
    """How many times faster ours is than each rival, medians of interleaved rounds."""
    if not _raced:
        return
    terminalreporter.section("ours against its rivals")
    width = max(len(race.name) for race in _raced)
    for race in _raced:
        medians = {name: statistics.median(race.times(name)) for name in race.names}
        ours = medians.pop(race.names[0])
        rivals = ", ".join(f"{m / ours:.2f}x {name}" for name, m in medians.items())
        terminalreporter.line(f"{race.name:<{width}}  {ours * 1e3:9.3f} ms  {rivals}")
