"""Markdown tables of results, and a description of the machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.results import Row
from ivcl_fast.text import markdown_table

Machine = dict[str, Any]
IN_DOCS = ("benchmark", "implementation", "median", "x ours", "bandwidth", "arithmetic")
"""Columns of the documentation's tables."""


def table(rows: Iterable[Row], machine: Machine, columns: Sequence[str] = ()) -> list[str]:
    """Return the table of all rows with a time; empty columns are left out.

    "x ours" is the time relative to this project's fastest implementation.
    """
    timed = [r for r in rows if r.get("seconds") and "benchmark" in r and "error" not in r]
    if not timed:
        return []
    lines, before = [], None
    for row in timed:
        ours = fastest_of_ours([r for r in timed if r["benchmark"] == row["benchmark"]])
        cells = cells_of(row, ours, machine)
        if row["benchmark"] == before:
            cells["benchmark"] = ""
        before = row["benchmark"]
        lines.append(cells)
    shown = [name for name in columns or lines[0] if any(cells[name] for cells in lines)]
    return markdown_table(shown, ([cells[name] for name in shown] for cells in lines))


def fastest_of_ours(rows: Iterable[Row]) -> Row | None:
    """Return this project's fastest row, if any."""
    ours = [row for row in rows if row["name"].startswith("ours")]
    return min(ours, key=lambda row: row["seconds"], default=None)


def cells_of(row: Row, ours: Row | None, machine: Machine) -> dict[str, str]:
    """Return a row's cells by column; ``ours``: our fastest row, for comparison."""
    cells = {
        "benchmark": row["benchmark"],
        "implementation": f"**{row['name']}**" if row is ours else row["name"],
        "median": duration(row["seconds"]),
        "expected": duration(row["expected_seconds"]) if "expected_seconds" in row else "",
        "launches": f"{row['launches']:.3g}" if "launches" in row else "",
        "spread": f"{row['spread']:.0%}" if "spread" in row else "",
        "x ours": f"{row['seconds'] / ours['seconds']:.2f}" if ours else "",
        "throughput": "",
        "bandwidth": share_of_best(row, "bytes", "B/s", machine),
        "arithmetic": share_of_best(row, "flops", "FLOP/s", machine),
        "MFU": "",
        "waits for data": f"{row['data_wait']:.1%}" if "data_wait" in row else "",
        "peak memory": f"{row['peak_bytes'] / 1e9:.2g} GB" if row.get("peak_bytes") else "",
        "first call": duration(row["first_seconds"]) if "first_seconds" in row else "",
        "difference": f"{row['difference']:.1g}" if "difference" in row else "",
    }
    if "count" in row:
        cells["throughput"] = f"{significant(row['count'] / row['seconds'])} {row['unit']}/s"
        if (peak := machine.get("datasheet_flops_per_s")) and row.get("flops"):
            cells["MFU"] = f"{row['flops'] / row['seconds'] / peak:.0%}"
    return cells


def share_of_best(row: Row, amount: str, unit: str, machine: Machine) -> str:
    """Return the bytes or FLOPs per second of a row, and their share of the machine's peak."""
    if not row.get(amount):
        return ""
    per_second, ceilings = row[amount] / row["seconds"], machine.get("ceilings")
    share = f" ({per_second / ceilings[f'{amount}_per_s']:.0%})" if ceilings else ""
    return rate(per_second, unit) + share


def describe_machine(machine: Machine) -> str:
    """Describe the device, the versions and the peak rates."""
    packages = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
    ceilings, sheet = machine["ceilings"], machine.get("datasheet_flops_per_s")
    text = f"{machine['device']}, {machine['threads']} threads; {packages}; "
    if machine.get("cuda"):
        text += f"CUDA {machine['cuda']}, driver {machine['driver'] or 'unknown'}; "
    text += (
        f"commit {machine['commit']}. Percentages relate to what the same run measured: copying "
        f"{rate(ceilings['bytes_per_s'], 'B/s')} (read and written) and "
        f"{machine.get('arithmetic', 'bf16')} matrix products "
        f"{rate(ceilings['flops_per_s'], 'FLOP/s')}."
    )
    return text + (f" MFU relates to the data sheet's {rate(sheet, 'FLOP/s')}." if sheet else "")


def duration(seconds: float) -> str:
    """Format seconds with three digits in a suitable unit."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{significant(seconds / scale)} {unit}"
    return f"{significant(seconds * 1e6)} µs"


def rate(value: float, unit: str) -> str:
    """Format a rate with three digits, in giga or tera."""
    prefix, scale = ("T", 1e12) if value >= 1e12 else ("G", 1e9)
    return f"{significant(value / scale)} {prefix}{unit}"


def significant(value: float) -> str:
    """Format a number with three significant digits, or more for integers above 999."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
