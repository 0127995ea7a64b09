"""A pytest plugin that writes the outcome of every test at once: a hang later on loses none."""

from __future__ import annotations

import json
import os
from typing import Any

FILE = "IVCL_FAST_GPU_CHECK"
"""Name of the environment variable with the file to append to."""


_errors: list[str] = []


def _add(**row: Any) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        return  # its reports reach the process that started it
    if "error" in row:
        _errors.append(row["error"])
    with open(os.environ[FILE], "a") as file:
        file.write(json.dumps(row) + "\n")


def pytest_runtest_logreport(report: Any) -> None:
    """Add a row for a test that ran or could not be set up; skipped tests get none."""
    if report.outcome == "failed":
        _add(test=report.nodeid, outcome="failed", error=message(report))
    elif report.when == "call" and report.outcome == "passed":
        _add(test=report.nodeid, outcome="passed", seconds=round(report.duration, 3))


def pytest_collectreport(report: Any) -> None:
    """Add a row for a file that cannot be imported; a missing package is not a failure."""
    if report.outcome == "failed":
        why = message(report)
        key = "skipped" if why.startswith("ModuleNotFoundError") else "error"
        _add(file=report.nodeid, outcome="not collected", **{key: why})


def pytest_sessionfinish(session: Any, exitstatus: int) -> None:
    """Report success if the only problem is files that need a missing package."""
    if exitstatus == 1 and not _errors:
        session.exitstatus = 0


def message(report: Any) -> str:
    """Return the last line that pytest marks as the error."""
    lines = [line for line in str(report.longrepr).splitlines() if line.strip()]
    marked = [line[1:].strip() for line in lines if line.startswith("E ")]
    return ((marked or lines or [""])[-1])[:300]
