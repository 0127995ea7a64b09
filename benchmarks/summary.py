"""Results as Markdown: one table of benchmarks for the terminal, the documentation and a card."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from benchmarks.results import Results, Row
from benchmarks.targets import is_ours, measured_targets

Machine = dict[str, Any]
SECTIONS = {
    "train": "The main command", "stage": "The trainer's stage",
    "base64": "Training steps of base64", "mae": "Image MAE", "attention": "Attention",
    "kernels": "Kernels alone", "store": "Training from a store", "stream": "Streaming",
    "timm": "accelerate on timm", "base224": "Training steps of base224",
    "decoder": "Building a store",
}  # fmt: skip
"""Parts of ``make gpu-check`` whose rows are benchmarks, and their headings."""


def summary(results: Results) -> str:
    """Return a page about a card: what ran, against which targets, and every table."""
    lines = [f"# {results.machine.get('device', 'unknown card')}", ""]
    lines += [f"`{results.command}`, {results.date}.", ""]
    sections: list[tuple[str, Iterable[str]]] = [("Parts", outcomes(results))]
    if "--rehearse" in results.command:
        lines += ["Tiny sizes, to show that every part runs: the figures mean nothing.", ""]
    else:
        sections.append(("Targets for one H100", targets(results)))
    sections.append(("Tests", tests(results)))
    for part, title in SECTIONS.items():
        sections.append((title, table(part_rows(results, part), results.machine)))
    lines += [describe_machine(results.machine), ""] if "ceilings" in results.machine else []
    for title, section in sections:
        if body := list(section):
            lines += [f"## {title}", "", *body, ""]
    return re.sub("\n{3,}", "\n\n", "\n".join(lines).rstrip() + "\n")


def describe_machine(machine: Machine) -> str:
    """Return a sentence about device, versions and the rates that shares relate to."""
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


def part_rows(results: Results, part: str) -> list[Row]:
    return [row for row in results.rows if row.get("part") == part]


def outcomes(results: Results) -> Iterator[str]:
    """Yield a table of all parts, and every measurement that failed or was skipped."""
    yield from lined_up(
        ("part", "outcome", "seconds"),
        ((part, done["outcome"], f"{done['seconds']:.0f}") for part, done in results.parts.items()),
    )
    yield ""
    for row in results.rows:
        if "difference" in row and "seconds" not in row and "error" not in row:
            what = f"{row['part']}, {row['benchmark']}, {row['name']}"
            yield f"- {what}: the difference is {row['difference']:.2g}"
        for line in row.get("said", ()):
            yield f"- {row['part']}, {row['name']}: `{line}`"
        reason = row.get("error") or row.get("skipped")
        if reason and row["part"] not in ("tests", "large"):  # they have a section of their own
            what = [row[key] for key in ("part", "benchmark", "name") if key in row]
            yield f"- {', '.join(what)}: {reason}"


def targets(results: Results) -> Iterator[str]:
    """Yield a table of the targets that could be measured."""
    if found := list(measured_targets(results)):
        yield from lined_up(
            ("measure", "target", "measured", ""),
            (
                (name, f">= {least:g}{unit}", f"{value:.4g}{unit}", "reached" * (value >= least))
                for name, least, unit, value in found
            ),
        )


def tests(results: Results) -> Iterator[str]:
    """Yield how many tests passed, and what failed or could not be imported."""
    found = part_rows(results, "tests") + part_rows(results, "large")
    if not found:
        return
    passed = sum(row.get("outcome") == "passed" for row in found)
    failed = [row for row in found if "error" in row]
    skipped = [row for row in found if "skipped" in row]
    yield f"{passed} passed, {len(failed)} failed, {len(skipped)} files need more packages."
    for row in failed + skipped:
        why = row.get("error") or row.get("skipped")
        yield f"- {row.get('test') or row.get('file')}, {row.get('outcome')}: {why}"


# --- The table of benchmarks ----------------------------------------------------------------------


def table(rows: Iterable[Row], machine: Machine, columns: Sequence[str] = ()) -> list[str]:
    """Return the table of all rows that have a time; empty columns are left out.

    "x ours" is the time relative to the fastest of this project's implementations.
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
    return list(lined_up(shown, ([cells[name] for name in shown] for cells in lines)))


def fastest_of_ours(rows: Iterable[Row]) -> Row | None:
    """Return the fastest row of an implementation of this project, if there is one."""
    return min(filter(is_ours, rows), key=lambda row: row["seconds"], default=None)


def of_best(row: Row, amount: str, unit: str, machine: Machine) -> str:
    """Return the bytes or flops per second of a row, and the share of the machine's best rate."""
    if not row.get(amount):
        return ""
    per_second, notes = row[amount] / row["seconds"], []
    if ceilings := machine.get("ceilings"):
        notes.append(f"{per_second / ceilings[f'{amount}_per_s']:.0%}")
    if amount == "bytes" and row.get("beyond_cache") is False:
        notes.append("in the cache")
    return rate(per_second, unit) + (f" ({', '.join(notes)})" if notes else "")


def cells_of(row: Row, ours: Row | None, machine: Machine) -> dict[str, str]:
    """Return a row's cells by column; ``ours``: the fastest of ours, which it is compared with."""
    cells = {
        "benchmark": row["benchmark"],
        "implementation": f"**{row['name']}**" if row is ours else row["name"],
        "median": duration(row["seconds"]),
        "spread": f"{row['spread']:.0%}" if "spread" in row else "",
        "x ours": f"{row['seconds'] / ours['seconds']:.2f}" if ours else "",
        "throughput": "",
        "bandwidth": of_best(row, "bytes", "B/s", machine),
        "arithmetic": of_best(row, "flops", "FLOP/s", machine),
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


IN_DOCS = ("benchmark", "implementation", "median", "x ours", "bandwidth", "arithmetic")


def duration(seconds: float) -> str:
    """Return seconds with three digits, in a unit that suits."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{significant(seconds / scale)} {unit}"
    return f"{significant(seconds * 1e6)} µs"


def rate(value: float, unit: str) -> str:
    """Return a rate with three digits, in giga or tera."""
    prefix, scale = ("T", 1e12) if value >= 1e12 else ("G", 1e9)
    return f"{significant(value / scale)} {prefix}{unit}"


def significant(value: float) -> str:
    """Return a number with three significant digits, or all digits before its point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def lined_up(head: Iterable[str], body: Iterable[Iterable[str]]) -> Iterator[str]:
    """Yield the lines of a Markdown table whose columns are lined up, to be read as text, too."""
    lines = [[*head], *map(list, body)]
    if not lines[0] or len(lines) == 1:
        return
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * max(3, width) for width in widths])
    for line in lines:
        cells = (cell.ljust(max(3, width)) for cell, width in zip(line, widths, strict=True))
        yield f"| {' | '.join(cells)} |"
