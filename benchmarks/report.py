"""``python -m benchmarks.report``: update the tables of the documentation.

A table stands between ``<!-- table: NAME; PREFIX; PREFIX -->`` and ``<!-- end -->``. It shows the
rows of ``benchmarks/results/NAME.json`` whose benchmark starts with one of the prefixes, or all
rows. ``machine`` in place of ``table`` describes the machine and software of the measurement.
"""

from __future__ import annotations

import argparse

from benchmarks.results import RESULTS, ROOT, read
from benchmarks.tables import IN_DOCS, describe_machine, table
from docs.markers import write_anew

PAGE = ROOT / "docs" / "performance.md"


def rows_table(name: str, *prefixes: str) -> list[str]:
    """Return the table of the rows whose benchmark starts with one of the prefixes, or of all.

    Rows without a benchmark are outcomes of gpu-check's tests.
    """
    results = read(RESULTS / f"{name}.json")
    rows = [row for row in results.rows if row.get("benchmark", "").startswith(prefixes or "")]
    return table(rows, results.machine, IN_DOCS)


def measured_on(name: str) -> list[str]:
    """Describe the machine, the software and the date of results."""
    results = read(RESULTS / f"{name}.json")
    return [f"{describe_machine(results.machine)} Date: {results.date[:10]}."]


KINDS = {"table": rows_table, "machine": measured_on}


def main() -> None:
    argparse.ArgumentParser("python -m benchmarks.report", description=__doc__).parse_args()
    write_anew([PAGE], KINDS)
    print(f"written: {PAGE}")


if __name__ == "__main__":
    main()
