"""Tables of what :mod:`ivcl_fast.kernels.aot` found in the kernels' machine code."""

from __future__ import annotations

from pathlib import Path

import torch

from ...files import write_text
from .builds import DTYPES, Figures, builds, compiled_figures
from .compile import CHIPS, LOW_OCCUPANCY, Compiled

TABLE = Path("benchmarks/results/aot.md")
DOCUMENT = Path("docs/kernel_notes.md")
BEGIN, END = "<!-- aot:begin -->", "<!-- aot:end -->"

Kernels = dict[str, list[Compiled]]
"""Kernels by name, each for the chips that it is compiled for."""


def kernels(figures: Figures, version: str, dtype: str) -> dict[str, Kernels]:
    """The kernels that one Triton compiled, by setting; each where it first occurs."""
    found: dict[str, Kernels] = {}
    for build in builds(version, [dtype]):
        compiled = compiled_figures(figures, build, version)
        if compiled is not None:
            found.setdefault(build.setting, {}).setdefault(build.name, []).append(compiled)
    return found


def table(kernels: Kernels) -> str:
    """A Markdown table with a row for each kernel."""
    lines = [
        "| kernel | chips | registers | warps | shared | spills | tensor-core | loads | 16-byte "
        "| instructions | occupancy |",
        "| --- " * 11 + "|",
    ]
    for name, built in kernels.items():
        chips = "all" if len(built) == len(CHIPS) else ", ".join(str(b.arch) for b in built)
        columns = (
            [chips], [b.registers for b in built], [b.warps for b in built],
            [b.shared for b in built], [b.spills for b in built],
            [" ".join(f"{n} {kind}" for kind, n in b.mma.items()) or "-" for b in built],
            [b.loads for b in built], [b.wide_loads for b in built],
            [b.instructions for b in built], [f"{b.occupancy:.0%}" for b in built],
        )  # fmt: skip
        lines.append(f"| {name} | {' | '.join(map(_cell, columns))} |")
    return "\n".join(lines)


def summary(sections: list[dict[str, Kernels]]) -> str:
    """A Markdown table with a row for each op: ranges over its kernels, settings and chips."""
    by_op: dict[str, list[Compiled]] = {}
    for settings in sections:
        for kernels in settings.values():
            for name, built in kernels.items():
                by_op.setdefault(name.split(",")[0].split()[0], []).extend(built)
    lines = [
        "| op | builds | registers | spills | shared memory | occupancy | on sm_90 |",
        "| --- " * 7 + "|",
    ]
    for op, built in sorted(by_op.items()):
        registers = _range([b.registers for b in built])
        spills, shared = sum(b.spills for b in built), max(b.shared for b in built) / 1024
        occupancy = _range([round(100 * b.occupancy) for b in built])
        hopper = _range([round(100 * b.occupancy) for b in built if b.arch == 90])
        lines.append(
            f"| `{op}` | {len(built)} | {registers} | {spills} | {shared:.0f} KiB "
            f"| {occupancy} % | {hopper} % |"
        )
    return "\n".join(lines)


def _cell(values: list) -> str:
    """One value if all chips agree, else each chip's."""
    return " / ".join(map(str, values if len(set(values)) > 1 else values[:1]))


def _range(values: list[int]) -> str:
    return f"{min(values)} to {max(values)}"


def write_between_markers(document: Path, text: str) -> None:
    """Replace the text between the two markers; raises ``ValueError`` if they are missing."""
    old = document.read_text()
    if BEGIN not in old or END not in old:
        raise ValueError(f"{document}: the markers {BEGIN} and {END} are missing")
    head, tail = old.split(BEGIN)[0], old.split(END)[1]
    write_text(document, f"{head}{BEGIN}\n{text}\n{END}{tail}")


def write_report(figures: Figures) -> None:
    """Write the table of all kernels and the summary."""
    versions = " and ".join(sorted(figures))
    chips = ", ".join(f"sm_{arch}" for arch in CHIPS)
    parts, sections = [], []
    for version in sorted(figures):
        for dtype in DTYPES:
            sections.append(kernels(figures, version, dtype))
            for setting, rows in sections[-1].items():
                parts.append(f"## {setting}, {dtype}, Triton {version}\n\n{table(rows)}")
    intro = INTRODUCTION.format(versions=versions, torch=torch.__version__, chips=chips)
    reasons = "\n".join(
        f"* `{' '.join(where)}`, at least {least:.1%}: {why}."
        for where, (least, why) in LOW_OCCUPANCY.items()
    )
    write_text(TABLE, "\n\n".join([intro, LOW, reasons, *parts]) + "\n")
    compiled = f"Compiled with Triton {versions} for {chips}."
    text = "\n\n".join([compiled, summary(sections), LOW, reasons])
    write_between_markers(DOCUMENT, text)
    print(f"wrote {TABLE} and {DOCUMENT}")


LOW = "Kernels that may fill less than a quarter of a multiprocessor of sm_90, and why:"
INTRODUCTION = """\
# Machine code of the kernels

Written by `make aot` with Triton {versions} and torch {torch}, for 8 clips per step, activations in
bfloat16 or float32, and float32 parameters. Cells with several values are one for each chip, of
{chips}.

Registers are per thread; shared memory is in bytes per program; spills are loads and stores of
thread-local memory. Tensor-core instructions and loads from global memory are counted in the code,
not as executed; instructions are those of the longest loop, or of the whole kernel if it has none.
Occupancy is the fraction of a multiprocessor's warps that can be resident at once. A row stands for
every launch that compiles to the same code, and has the name of the first."""
