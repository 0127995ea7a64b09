"""The results of a check as tables for people."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.gpu.results import AGREE, Results, Row, agrees, fastest, rows, timed
from benchmarks.gpu.targets import measured_targets

REHEARSAL = "--rehearse"


def summary(report: dict[str, Any]) -> str:
    """Markdown."""
    results: Results = report["parts"]
    sections: list[tuple[str, Callable[[Results], Iterable[str]]]] = [
        ("Parts", outcomes), ("Targets (for one H100)", targets), ("Tests", failures),
        ("Training steps", steps), ("Batch sweep", batches), ("Kernels", kernels),
        ("Attention, forward and backward", attention), ("Training from a store", store),
        ("Decoding", decoder),
    ]  # fmt: skip
    lines = [f"# {title(results)}", "", f"`{report['command']}`, {report['date']}.", ""]
    if REHEARSAL in report["command"]:
        lines += ["A rehearsal: the figures mean nothing.", ""]
        sections = [s for s in sections if s[1] is not targets]
    lines += machine(results)
    for name, section in sections:
        made = list(section(results))
        if made:
            lines += [f"## {name}", "", *made, ""]
    text = "\n".join(lines).rstrip() + "\n"
    return re.sub("\n{3,}", "\n\n", text)


def title(results: Results) -> str:
    return next((r["device"] for r in rows(results, "machine") if "device" in r), "unknown card")


def machine(results: Results) -> Iterable[str]:
    found: Row = {}
    for row in rows(results, "machine"):
        found |= row
    if "ceilings" not in found:
        return
    packages = ", ".join(f"{name} {number}" for name, number in found["packages"].items())
    best, sheet = found["ceilings"], found.get("datasheet_flops_per_s")
    yield (
        f"{packages}, CUDA {found.get('cuda')}, driver {found.get('driver')}, commit "
        f"{found['commit']}. Measured in the same run, and what shares are of: copying "
        f"{best['bytes_per_s'] / 1e9:,.0f} GB/s (read and written), bf16 products of 8,192 "
        f"{best['flops_per_s'] / 1e12:,.0f} TFLOP/s"
        + (f"; MFU is of the data sheet's {sheet / 1e12:,.0f} TFLOP/s." if sheet else ".")
    )
    yield ""


def outcomes(results: Results) -> Iterable[str]:
    yield from table(
        ("part", "outcome", "seconds"),
        ((name, done["outcome"], f"{done['seconds']:.0f}") for name, done in results.items()),
    )
    errors = [
        f"- {part}: {describe(row)}: {row['error']}"
        for part in results
        if part not in ("tests", "large")
        for row in rows(results, part)
        if "error" in row
    ]
    if errors:
        yield from ("", *errors)


def describe(row: Row) -> str:
    """Which measurement a row is of."""
    names = ("what", "preset", "shape", "case", "kernel", "name", "clips", "image_size", "command")
    return ", ".join(str(row[name]) for name in names if name in row)


def failures(results: Results) -> Iterable[str]:
    found = rows(results, "tests") + rows(results, "large")
    if not found:
        return
    passed, failed, skipped = (
        sum(r.get("outcome") == "passed" for r in found),
        [r for r in found if "error" in r],
        [r for r in found if "skipped" in r],
    )
    yield f"{passed} passed, {len(failed)} failed, {len(skipped)} files need more packages."
    for row in failed + skipped:
        why = row.get("error") or row.get("skipped")
        yield f"- {row.get('test') or row.get('file')}, {row.get('outcome')}: {why}"


def steps(results: Results) -> Iterable[str]:
    for preset in ("base64", "base224"):
        found = timed(results, preset)
        if not found:
            continue
        ours = fastest(found, "ours")
        yield f"`{preset}`, mask ratio 0.875, one query frame, {found[0]['clips']} clips:"
        yield ""
        yield from table(
            ("", "ms", "spread", "clips/s", "x the best of ours", "TFLOP/s", "MFU", "GB", "first"),
            (
                (
                    r["name"], f"{r['seconds'] * 1e3:.1f}", f"{r['spread']:.0%}",
                    f"{r['clips_per_second']:,.0f}",
                    ratio(r, ours) if agrees(r, found) else "loss differs",
                    f"{r.get('TFLOP/s', 0):.0f}", percent(r.get("mfu")),
                    f"{r['peak_bytes'] / 1e9:.1f}", f"{r['first_seconds']:.1f} s",
                )
                for r in found
            ),
        )  # fmt: skip
        yield ""


def batches(results: Results) -> Iterable[str]:
    found = timed(results, "batches")
    if found:
        yield from table(
            ("clips", "", "ms", "clips/s", "MFU", "GB"),
            (
                (
                    str(r["clips"]), r["name"], f"{r['seconds'] * 1e3:.1f}",
                    f"{r['clips_per_second']:,.0f}", percent(r.get("mfu")),
                    f"{r['peak_bytes'] / 1e9:.1f}",
                )
                for r in found
            ),
        )  # fmt: skip


def kernels(results: Results) -> Iterable[str]:
    found = timed(results, "kernels")
    if found:
        yield "The kernels alone, inputs out of the cache but where marked *."
        yield ""
        yield from table(
            ("preset", "where", "kernel", "µs", "MB", "GB/s", "of copying", "TFLOP/s", "of GEMM"),
            (
                (
                    r["preset"], r["case"], r["kernel"], f"{r['seconds'] * 1e6:.1f}",
                    f"{r['bytes'] / 1e6:.1f}" + "*" * (not r["beyond_cache"]),
                    f"{r.get('GB/s', 0):,.0f}", percent(r.get("of_copy_bandwidth")),
                    f"{r['TFLOP/s']:.1f}" if r.get("flops") else "", percent(r.get("of_gemm_rate")),
                )
                for r in found
            ),
        )  # fmt: skip


def attention(results: Results) -> Iterable[str]:
    found = timed(results, "attention")
    for shape in dict.fromkeys(r["shape"] for r in found):
        same = [r for r in found if r["shape"] == shape]
        ours = next((r for r in same if r["name"] == "ours"), None)
        yield f"{shape}:"
        yield ""
        yield from table(
            ("", "µs", "x ours", "GB/s", "of copying", "TFLOP/s", "difference"),
            (
                (
                    r["name"], f"{r['seconds'] * 1e6:.1f}",
                    ratio(r, ours) if r["difference"] < AGREE else "differs",
                    f"{r.get('GB/s', 0):,.0f}", percent(r.get("of_copy_bandwidth")),
                    f"{r.get('TFLOP/s', 0):.1f}", f"{r['difference']:.1e}",
                )
                for r in same
            ),
        )  # fmt: skip
        yield ""


def targets(results: Results) -> Iterable[str]:
    """What docs/performance.md promises for one H100, and what was measured."""
    found = list(measured_targets(results))
    if found:
        yield from table(
            ("measure", "target", "measured", ""),
            (
                (name, f">= {least:g}{unit}", f"{value:.4g}{unit}", "reached" * (value >= least))
                for name, least, unit, value in found
            ),
        )


def store(results: Results) -> Iterable[str]:
    found = [r for r in rows(results, "store") if "clips_per_second" in r]
    if found:
        yield from table(
            ("", "clips/s", "waits for data"),
            (
                (r["name"], f"{r['clips_per_second']:,.0f}", percent(r["data_wait"], 1))
                for r in found
            ),
        )


def decoder(results: Results) -> Iterable[str]:
    found = timed(results, "decoder")
    if found:
        yield from table(
            ("decoder", "pixels", "workers", "frames/s"),
            (
                (
                    r["name"], str(r["image_size"]), str(r["workers"]),
                    f"{r['frames_per_second']:,.0f}",
                )
                for r in found
            ),
        )  # fmt: skip


# --- Tables ---------------------------------------------------------------------------------------


def ratio(row: Row, ours: Row | None) -> str:
    return f"{row['seconds'] / ours['seconds']:.2f}" if ours else ""


def percent(share: float | None, digits: int = 0) -> str:
    return "" if share is None else f"{share:.{digits}%}"


def table(head: Iterable[str], body: Iterable[Iterable[str]]) -> Iterable[str]:
    cells = [*head]
    yield "| " + " | ".join(cells) + " |"
    yield "|" + "---|" * len(cells)
    for line in body:
        yield "| " + " | ".join(line) + " |"
