"""``python -m benchmarks.report``: update the tables and figures of the documentation.

A table stands between ``<!-- table: NAME; PREFIX; PREFIX -->`` and ``<!-- end -->``. It shows the
rows of ``benchmarks/results/NAME.json`` whose benchmark starts with one of the prefixes, or all
rows. ``machine`` in place of ``table`` describes the machine and software of the measurement.
``zoo: NAME`` is the gain of ``accelerate`` on public models, and ``limits`` the longest sequences
that it fuses.
"""

from __future__ import annotations

import argparse
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from benchmarks import zoo
from benchmarks.results import RESULTS, ROOT, Results, read
from benchmarks.tables import IN_DOCS, describe_machine, duration, fastest_of_ours, table
from docs.markers import write_anew
from ivcl_fast.command import run_command
from ivcl_fast.errors import UserError

PAGE = ROOT / "docs" / "performance.md"
GUIDE = ROOT / "docs" / "guide"
PAGES = (PAGE, GUIDE / "accelerate.md")
CPU = "cpu-amd-epyc-zen5"


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


KINDS = {
    "table": rows_table,
    "machine": measured_on,
    "limits": lambda: [*zoo.limits()],
    "zoo": zoo_table,
}


def roofline(results: Results, figure: Any) -> None:
    """Draw our attention and the baselines below the peak rates of the machine."""
    axes = figure.subplots()
    bandwidth, rate = (results.machine["ceilings"][key] for key in ("bytes_per_s", "flops_per_s"))
    intensity = [0.5, rate / bandwidth, 512.0]  # lines to the ridge point and from it
    axes.plot(intensity, [min(rate, x * bandwidth) / 1e9 for x in intensity], "k-", lw=1)
    counted = [row for row in results.rows if row.get("bytes") and row.get("flops")]
    for number, name in enumerate(dict.fromkeys(row["name"] for row in counted)):
        own = [row for row in counted if row["name"] == name]
        x = [row["flops"] / row["bytes"] for row in own]
        y = [row["flops"] / row["seconds"] / 1e9 for row in own]
        axes.scatter(x, y, label=name, marker="osv^DPX*"[number % 8], zorder=3 - (number > 0))
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte that must be moved")
    axes.set(ylabel="GFLOP/s", title="short_attention, forward and backward, bf16")
    axes.legend()


def waterfall(results: Results, figure: Any) -> None:
    """Draw the time of every implementation of the training steps, slowest first."""
    rows = [row for row in results.rows if row["benchmark"].startswith("training step")]
    steps = [[*step] for _, step in groupby(rows, key=itemgetter("benchmark"))]
    for axes, step in zip(figure.subplots(len(steps), squeeze=False)[:, 0], steps, strict=True):
        ours, ordered = fastest_of_ours(step), sorted(step, key=lambda row: -row["seconds"])
        slowest = ordered[0]["seconds"]
        axes.barh(
            [row["name"] for row in ordered],
            [1e3 * row["seconds"] for row in ordered],
            color=["tab:orange" if row is ours else "tab:blue" for row in ordered],
        )
        for i, row in enumerate(ordered):
            label = f" {duration(row['seconds'])}, {slowest / row['seconds']:.2f}x"
            axes.text(1e3 * row["seconds"], i, label, va="center", fontsize=8)
        axes.set(title=step[0]["benchmark"], xlim=(0, 1.25e3 * slowest))
        axes.invert_yaxis()
    axes.set_xlabel("milliseconds per step (forward, backward, AdamW)")


FIGURES = {"roofline-cpu.png": (roofline, (8, 5)), "waterfall-cpu.png": (waterfall, (8, 5.8))}


def draw_figures(folder: Path) -> None:
    """Draw :data:`FIGURES` from the results of the CPU."""
    from matplotlib.figure import Figure

    results = results_named(CPU)
    machine = results.machine
    for name, (draw, size) in FIGURES.items():
        figure = Figure(figsize=size)
        draw(results, figure)
        source = (
            f"{machine['device']}, {machine['threads']} threads, torch "
            f"{machine['packages']['torch']}, commit {machine['commit']}, {results.date[:10]}"
        )
        figure.text(0.01, 0.005, source, fontsize=7, color="gray")
        figure.tight_layout(rect=(0, 0.03, 1, 1))
        figure.savefig(folder / name, dpi=130)


def main() -> None:
    argparse.ArgumentParser("python -m benchmarks.report", description=__doc__).parse_args()
    write_anew(PAGES, KINDS)
    draw_figures(PAGE.parent / "figures")
    print(f"written: {', '.join(map(str, PAGES))} and {', '.join(FIGURES)}")


if __name__ == "__main__":
    run_command(main)
