"""``python -m benchmarks.report FILE.json``: a run of the benchmarks as tables and figures.

Writes the tables between the markers of docs/performance.md and, beside it, a roofline plot and a
waterfall of the training step. FILE.json is what ``--benchmark-json`` gave.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ivcl_fast.errors import UserError, run_command
from ivcl_fast.files import write_text

DOCS = Path(__file__).parent.parent / "docs"


@dataclass(frozen=True)
class Entry:
    """One contestant of one race."""

    race: str
    name: str
    median: float
    """Seconds."""
    facts: dict[str, Any]


def entries(results: dict[str, Any]) -> list[Entry]:
    return [
        Entry(b["group"], b["params"]["contestant"], b["stats"]["median"], b["extra_info"])
        for b in results["benchmarks"]
        if b["group"] is not None and "contestant" in b["params"]
    ]


def races(found: list[Entry]) -> Iterator[list[Entry]]:
    """Contestants of each race, ours first."""
    for name in dict.fromkeys(e.race for e in found):
        yield [e for e in found if e.race == name]


def seconds(value: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value * 1e6:.3g} µs"


def share(facts: dict[str, Any], rate: str, unit: str, of: str) -> str:
    return f"{facts[rate]:g} {unit} ({facts[of]:.0%})" if rate in facts else ""


def tables(results: dict[str, Any], source: str) -> str:
    """Markdown: where it was measured, then a row per contestant."""
    machine = results["machine_info"]["ivcl_fast"]
    packages = ", ".join(f"{k} {v}" for k, v in machine["packages"].items())
    ceilings = machine["ceilings"]
    lines = [
        f"{machine['device']}, {machine['threads']} threads; {packages}; commit "
        f"{machine['commit']}, {results['datetime'][:10]}. Measured in the same run: copying "
        f"{ceilings['bytes_per_s'] / 1e9:.1f} GB/s, bf16 products "
        f"{ceilings['flops_per_s'] / 1e12:.3g} TFLOP/s; shares are of these. Medians of "
        "interleaved rounds; *x ours* is how many times as long as ours. "
        f"`pytest benchmarks/ --benchmark-only --benchmark-json={source}`, then "
        f"`python -m benchmarks.report {source}`.",
        "",
        "| race | | median | x ours | bandwidth | arithmetic |",
        "|---|---|---|---|---|---|",
    ]
    for race in races(entries(results)):
        for i, entry in enumerate(race):
            facts = entry.facts
            cells = [
                entry.race if i == 0 else "",
                f"**{entry.name}**" if i == 0 else entry.name,
                seconds(entry.median),
                f"{facts['ours_is_faster_by']:.2f}",
                share(facts, "GB/s", "GB/s", "of_copy_bandwidth"),
                share(facts, "TFLOP/s", "TFLOP/s", "of_gemm_rate"),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def roofline(results: dict[str, Any], path: Path) -> None:
    """Attention, ours and rivals, under what this machine does at best."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    machine = results["machine_info"]["ivcl_fast"]
    bandwidth, rate = machine["ceilings"]["bytes_per_s"], machine["ceilings"]["flops_per_s"]
    figure, axes = plt.subplots(figsize=(8, 5))
    intensity = [0.5, rate / bandwidth, 512.0]  # straight to the ridge and on from it
    axes.plot(intensity, [min(rate, x * bandwidth) / 1e9 for x in intensity], "k-", lw=1)
    counted = [e for e in entries(results) if e.facts.get("bytes") and e.facts.get("flops")]
    for number, name in enumerate(dict.fromkeys(e.name for e in counted)):
        own = [e for e in counted if e.name == name]
        x = [e.facts["flops"] / e.facts["bytes"] for e in own]
        y = [e.facts["flops"] / e.median / 1e9 for e in own]
        axes.scatter(x, y, label=name, marker="osv^DPX*"[number % 8], zorder=3 - (number > 0))
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte that must be moved")
    axes.set(ylabel="GFLOP/s", title="short_attention, forward and backward, bf16")
    axes.legend()
    finish(figure, results, path)


def waterfall(results: dict[str, Any], path: Path) -> None:
    """The training steps' times, slowest first: what each technique gave."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    steps = [r for r in races(entries(results)) if r[0].race.startswith("training step")]
    figure, rows = plt.subplots(len(steps), 1, figsize=(8, 2.6 * len(steps) + 0.6), squeeze=False)
    for axes, race in zip(rows[:, 0], steps, strict=True):
        ordered = sorted(race, key=lambda e: -e.median)
        slowest = ordered[0].median
        colors = ["tab:orange" if e is race[0] else "tab:blue" for e in ordered]
        axes.barh([e.name for e in ordered], [e.median * 1e3 for e in ordered], color=colors)
        for i, entry in enumerate(ordered):
            label = f" {seconds(entry.median)}, {slowest / entry.median:.2f}x"
            axes.text(entry.median * 1e3, i, label, va="center", fontsize=8)
        axes.set(title=race[0].race, xlim=(0, 1.25e3 * slowest))
        axes.invert_yaxis()
    rows[-1, 0].set_xlabel("milliseconds per step (forward, backward, AdamW)")
    finish(figure, results, path)


def finish(figure: Any, results: dict[str, Any], path: Path) -> None:
    """Say on the figure where it was measured, and write it."""
    machine = results["machine_info"]["ivcl_fast"]
    torch = machine["packages"]["torch"]
    figure.text(
        0.01, 0.005,
        f"{machine['device']}, {machine['threads']} threads, torch {torch}, commit "
        f"{machine['commit']}, {results['datetime'][:10]}",
        fontsize=7, color="gray",
    )  # fmt: skip
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.report", description=__doc__)
    parser.add_argument("file", type=Path, metavar="FILE.json")
    file = parser.parse_args().file
    try:
        results = json.loads(file.read_text())
        kind = "gpu" if results["machine_info"]["ivcl_fast"]["cuda"] else "cpu"
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{file}: not the JSON of a benchmark run ({error})") from None
    page = DOCS / "performance.md"
    text = page.read_text()
    begin, end = (f"<!-- bench-{kind}:{edge} -->" for edge in ("begin", "end"))
    if begin not in text or end not in text:
        raise UserError(f"{page}: has no {begin} and {end}")
    figures = {f"roofline-{kind}.png": roofline, f"waterfall-{kind}.png": waterfall}
    for name, draw in figures.items():
        draw(results, DOCS / "figures" / name)
    shown = "\n\n".join(f"![{name.removesuffix('.png')}](figures/{name})" for name in figures)
    before, after = text.partition(begin)[0], text.partition(end)[2]
    table = tables(results, file.as_posix())
    write_text(page, f"{before}{begin}\n{table}\n\n{shown}\n{end}{after}")
    print(f"{page}: tables and {', '.join(figures)}")


if __name__ == "__main__":
    run_command(main)
