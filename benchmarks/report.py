"""``python -m benchmarks.report``: update the tables of the documentation.

A table stands between ``<!-- table: NAME; PREFIX; PREFIX -->`` and ``<!-- end -->``. It shows the
rows of ``benchmarks/results/NAME.json`` whose benchmark starts with one of the prefixes, or all
rows. ``machine`` in place of ``table`` describes the machine and software of the measurement.
``zoo: NAME`` is the gain of ``accelerate`` on public models.
"""

from __future__ import annotations

import argparse

from benchmarks import zoo
from benchmarks.results import RESULTS, ROOT, Results, read
from benchmarks.tables import IN_DOCS, describe_machine, table
from docs.markers import write_anew
from ivcl_fast.command import run_command
from ivcl_fast.errors import UserError

PAGE = ROOT / "docs" / "performance.md"
PAGES = (PAGE, ROOT / "docs" / "guide" / "accelerate.md")


def results_named(name: str) -> Results:
    """Read committed results.

    Raises :class:`UserError` if the file is missing or malformed.
    """
    file = RESULTS / f"{name}.json"
    try:
        return read(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read as results ({error})") from None


def rows_table(name: str, *prefixes: str) -> list[str]:
    """Return the table of the rows whose benchmark starts with one of the prefixes, or of all.

    Rows without a benchmark are outcomes of gpu-check's tests.
    """
    results = results_named(name)
    rows = [row for row in results.rows if row.get("benchmark", "").startswith(prefixes or "")]
    return table(rows, results.machine, IN_DOCS)


def measured_on(name: str) -> list[str]:
    """Describe the machine, the software and the date of results."""
    results = results_named(name)
    return [f"{describe_machine(results.machine)} Date: {results.date[:10]}."]


def zoo_table(name: str) -> list[str]:
    return [*zoo.summary(results_named(name).rows)]


KINDS = {"table": rows_table, "machine": measured_on, "zoo": zoo_table}


def main() -> None:
    argparse.ArgumentParser("python -m benchmarks.report", description=__doc__).parse_args()
    write_anew(PAGES, KINDS)
    print(f"written: {', '.join(map(str, PAGES))}")


if __name__ == "__main__":
    run_command(main)
