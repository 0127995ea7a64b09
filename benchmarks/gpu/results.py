"""What parts have measured: rates, shares of limits, and what of it counts."""

from __future__ import annotations

import copy
from typing import Any

Row = dict[str, Any]
Results = dict[str, dict[str, Any]]
AGREE = 0.02
"""Relative difference of bfloat16 results that is still rounding."""


def rated(results: Results) -> Results:
    """With bytes and FLOPs per second, and their shares of what the card did at best."""
    results = copy.deepcopy(results)
    machine = next((r for r in rows(results, "machine") if "ceilings" in r), {})
    best = machine.get("ceilings", {})
    for row in (r for part in results for r in rows(results, part)):
        if not row.get("seconds"):
            continue
        for amount, rate, share, limit in (
            ("bytes", "GB/s", "of_copy_bandwidth", "bytes_per_s"),
            ("flops", "TFLOP/s", "of_gemm_rate", "flops_per_s"),
        ):
            if not row.get(amount):
                continue
            per_second = row[amount] / row["seconds"]
            row[rate] = round(per_second / (1e9 if amount == "bytes" else 1e12), 3)
            if limit in best:
                row[share] = round(per_second / best[limit], 4)
        if row.get("clips") and row.get("flops") and machine.get("datasheet_flops_per_s"):
            row["mfu"] = round(row["flops"] / row["seconds"] / machine["datasheet_flops_per_s"], 4)
    return results


def rows(results: Results, part: str) -> list[Row]:
    return results.get(part, {}).get("rows", [])


def timed(results: Results, part: str) -> list[Row]:
    """The rows of a part that have a time and no error."""
    return [r for r in rows(results, part) if r.get("seconds") and "error" not in r]


def fastest(found: list[Row], start: str) -> Row | None:
    named = [r for r in found if r["name"].startswith(start)]
    return min(named, key=lambda r: r["seconds"], default=None)


def agrees(row: Row, found: list[Row]) -> bool:
    """Whether the first loss is the float32 reference's; where that failed, that of most."""
    known = [r["loss"] for r in found if r["name"] == "reference, float32"]
    losses = known or sorted(r["loss"] for r in found)
    expected = losses[len(losses) // 2]
    return abs(row["loss"] - expected) <= AGREE * abs(expected)
