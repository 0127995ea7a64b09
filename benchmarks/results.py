"""The result format: one row per implementation measured, with the machine, command and date.

Rows are dictionaries; see :data:`Row`. ``benchmarks/results/*.json`` holds whole :class:`Results`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
Row = dict[str, Any]
"""The measurement of one implementation.

``benchmark`` and ``name`` (of the implementation) identify it; names of this project's
implementations start with "ours". ``seconds`` is the median, ``times`` are all rounds and
``spread`` is their range relative to the median. Where known: ``bytes`` (moved at least),
``flops``, ``count`` and ``unit`` (the clips or frames that one call processes), ``peak_bytes``,
``first_seconds`` (building it and the first call), ``difference`` (found by the parity check),
``part`` (of ``make gpu-check``). A row without a time says why: ``error`` or ``skipped``.
"""


class Skip(Exception):
    """Raised with the reason if something cannot run here."""


def require(*packages: str) -> None:
    """Raise :class:`Skip` if a package cannot be imported."""
    for package in packages:
        try:
            importlib.import_module(package)
        except Exception as error:  # may be anything, such as a mismatched driver
            raise Skip(f"{package} cannot be imported ({error})") from None


@dataclass
class Results:
    """Everything one command measured."""

    command: str
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    machine: dict[str, Any] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    """``outcome`` and ``seconds`` of each part of ``make gpu-check``."""

    def write(self, file: Path) -> None:
        """Write JSON with a line per row, so that differences can be read."""
        fields = asdict(self)
        rows = ",\n".join(f"  {json.dumps(row)}" for row in fields.pop("rows"))
        file.write_text(f'{json.dumps(fields, indent=1)[:-2]},\n "rows": [\n{rows}\n ]\n}}\n')


def read(file: Path) -> Results:
    """Read a file of results."""
    return Results(**json.loads(file.read_text()))


@contextlib.contextmanager
def failures_in(row: Row) -> Iterator[Row]:
    """Record an exception of the block in ``row``, as ``skipped`` or ``error``.

    :class:`Skip` and exhausted GPU memory are ``skipped``.
    """
    try:
        yield row
    except Skip as reason:
        row["skipped"] = str(reason)
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
            row["skipped"] = "it does not fit into the GPU's memory"
            return
        traceback.print_exc()
        lines = str(error).strip().splitlines() or [""]
        row["error"] = f"{type(error).__name__}: {lines[0]}"[:300]


class RowFile:
    """A file with a row per line, so that a later crash loses no rows."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def add(self, row: Row) -> None:
        with open(self.file, "a") as file:
            file.write(json.dumps(row) + "\n")

    @contextlib.contextmanager
    def row(self, benchmark: str, name: str, **facts: Any) -> Iterator[Row]:
        """Append a row that the block fills in, or the reason why it could not."""
        with failures_in({"benchmark": benchmark, "name": name, **facts}) as row:
            yield row
        self.add(row)

    def read(self) -> list[Row]:
        """Return all complete rows; a killed process may have left part of a line."""
        rows = []
        for line in self.file.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                rows.append(json.loads(line))
        return rows
