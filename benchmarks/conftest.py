"""``pytest benchmarks/ --benchmark-only``: its flags, and a table of the results."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from rich.markdown import Markdown

from benchmarks import machine, tables
from benchmarks.measure import DEVICE
from benchmarks.results import Results, Row
from ivcl_fast.training.hardware import tune_malloc

ROWS: dict[str, dict[str, Row]] = {}
"""Results by benchmark and implementation."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--mae", metavar="FOLDER", type=Path, help="copy of the public MAE code to compare with"
    )
    parser.addoption(
        "--accelerate",
        action="store_true",
        help="accelerate on a ViT of timm instead",
    )
    parser.addoption(
        "--seconds", metavar="N", type=float,
        help="measure each benchmark for this long, for example on a busy machine",
    )  # fmt: skip
    parser.addoption(
        "--results", metavar="FILE.json", type=Path, help="write rows that benchmarks.report reads"
    )


def pytest_configure() -> None:
    torch.set_num_threads(torch.get_num_threads())  # so that it does not change later
    if DEVICE.type == "cpu":
        tune_malloc()  # as in the trainer; also for the baselines


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    """Print medians and ratios, and write ``--results``."""
    if not ROWS:
        return
    rows = [row for found in ROWS.values() for row in found.values()]
    results = Results("pytest benchmarks/ --benchmark-only", machine=machine.describe(), rows=rows)
    terminalreporter.section("this project's implementations against their baselines")
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(Markdown("\n".join(tables.table(rows, results.machine))))
    if (file := config.getoption("--results")) is not None:
        results.write(file)
        terminalreporter.line(f"written: {file}")
