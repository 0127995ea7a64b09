"""A pytest plugin that writes the outcome of every test at once: a hang later on loses none."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks.results import Row, RowFile

FILE, PER_FUNCTION = "IVCL_FAST_GPU_CHECK", "IVCL_FAST_GPU_CHECK_PER_FUNCTION"
"""Names of the environment variables with the file to append to, and with how many tests of each
function to run."""
REPORTS_TO_ANOTHER = "PYTEST_XDIST_WORKER" in os.environ
"""Whether this is one of several processes, whose reports reach the one that started it.

Read before the tests, which take the variable away."""

_rows: list[Row] = []
_skipped: list[str] = []


def _add(**row: Any) -> None:
    if REPORTS_TO_ANOTHER:
        return
    _rows.append(row)
    RowFile(Path(os.environ[FILE])).add(row)


@pytest.hookimpl(trylast=True)  # what -m and -k leave
def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Thin the tests: of each function, and op, the first and last parameters, and some between.

    An environment variable says how many; without it all run.
    """
    most = int(os.environ.get(PER_FUNCTION, 0)) or len(items)
    by_function: dict[str, list[Any]] = {}
    for item in items:
        op = item.callspec.params.get("op", "") if hasattr(item, "callspec") else ""
        by_function.setdefault(f"{item.nodeid.partition('[')[0]} {op}", []).append(item)
    kept: set[Any] = set()
    for those in by_function.values():
        count = min(most, len(those))
        kept |= {those[round(i * (len(those) - 1) / max(1, count - 1))] for i in range(count)}
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


def pytest_runtest_logreport(report: Any) -> None:
    """Add a row for a test that ran or could not be set up; one that was skipped gets none."""
    if report.outcome == "failed":
        _add(test=report.nodeid, outcome="failed", error=message(report))
    elif report.when == "call" and report.outcome == "passed":
        _add(test=report.nodeid, outcome="passed", seconds=round(report.duration, 3))
    elif isinstance(report.longrepr, tuple):  # file, line and reason of a skip
        _skipped.append(report.longrepr[-1].removeprefix("Skipped: "))


def pytest_collectreport(report: Any) -> None:
    """Add a row for a file that cannot be imported; a missing package is not a failure."""
    if report.outcome == "failed":
        why = message(report)
        key = "skipped" if why.startswith("ModuleNotFoundError") else "error"
        _add(file=report.nodeid, outcome="not collected", **{key: why})


def pytest_sessionfinish(session: Any, exitstatus: int) -> None:
    """Report success if the only problem is files that need a missing package.

    If all tests were skipped, one row says why.
    """
    if _skipped and not _rows:
        _add(outcome="skipped", skipped=_skipped[0])
    if exitstatus == 1 and not any("error" in row for row in _rows):
        session.exitstatus = 0


def message(report: Any) -> str:
    """Return the last line that pytest marks as the error."""
    lines = [line for line in str(report.longrepr).splitlines() if line.strip()]
    marked = [line[1:].strip() for line in lines if line.startswith("E ")]
    return ((marked or lines or [""])[-1])[:300]
