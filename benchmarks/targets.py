"""The targets for one H100, and what was measured of them."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.results import Results, Row


def measured_targets(results: Results) -> Iterator[tuple[str, float, str, float]]:
    """Yield the name, the least value, the unit and the measured value of each target.

    What was not measured, or failed the parity check, is left out.
    """
    timed: dict[str, list[Row]] = {}
    for row in results.rows:
        if row.get("seconds") and "error" not in row:
            timed.setdefault(row["part"], []).append(row)
    yield from of_stage(timed.get("stage", []))
    yield from of_steps(timed.get("base64", []))
    if images := [row["count"] / row["seconds"] for row in timed.get("mae", []) if is_ours(row)]:
        yield "image MAE, ViT-B/16 (others: 1,980 on an A100)", 4200, " images/s", max(images)
        yield "image MAE, ViT-B/16 (23 % MFU: 3,970)", 6800, " images/s", max(images)
    timm = {row["name"]: row["seconds"] for row in timed.get("timm", [])}
    if {"ours", "timm"} <= timm.keys():
        yield "accelerate on timm's ViT-B/16", 1, "x", timm["timm"] / timm["ours"]
    copying = results.machine.get("ceilings", {}).get("bytes_per_s")
    short = [row for row in timed.get("attention", []) if row["tokens"] <= 64]
    ours = {row["benchmark"]: row for row in short if row["name"] == "ours"}
    if ours and copying:
        least = min(row["bytes"] / row["seconds"] / copying for row in ours.values())
        yield "short_attention up to 64 tokens, of copying", 60, " %", 100 * least
    ratios = [
        row["seconds"] / ours[row["benchmark"]]["seconds"] for row in short
        if row["benchmark"] in ours and row["name"] != "ours"
    ]  # fmt: skip
    if ratios:
        yield "short_attention up to 64 tokens, against the best baseline", 1, "x", min(ratios)
    norms = [
        row["bytes"] / row["seconds"] / 1e12 for row in timed.get("kernels", [])
        if row["benchmark"].startswith("add_layer_norm") and row["name"] == "forward"
        and row["beyond_cache"] and row["bytes"] > 50e6
    ]  # fmt: skip
    if norms:
        yield "add_layer_norm forward", 2.5, " TB/s", min(norms)
    loaders: dict[bool, list[float]] = {True: [], False: []}
    for row in timed.get("store", []):
        loaders[row["name"].startswith("store")].append(1 / row["seconds"])
    if loaders[True] and loaders[False]:
        share = 100 * max(loaders[True]) / max(loaders[False])
        yield "training from a store, of synthetic tensors", 97, " %", share


def is_ours(row: Row) -> bool:
    """Whether a row is of an implementation of this project."""
    return row["name"].startswith("ours")


def of_stage(rows: list[Row]) -> Iterator[tuple[str, float, str, float]]:
    """Yield the targets of the trainer's stage: a whole step of ``base64``, with its optimiser."""
    for clips, least in ((256, 3200), (88, 2500)):
        rates = [clips / row["seconds"] for row in rows if row.get("count") == clips]
        if rates:
            yield f"base64 stage with Muon, {clips} clips", least, " clips/s", max(rates)


def of_steps(rows: list[Row]) -> Iterator[tuple[str, float, str, float]]:
    """Yield the targets of a training step of ``base64``."""
    ours = [row for row in rows if is_ours(row)]
    if not ours:
        return
    best = min(row["seconds"] for row in ours)
    yield "base64 step", 2500, " clips/s", ours[0]["count"] / best
    for name, least, compiled in (
        ("base64 step, against eager bf16", 3, False),
        ("base64 step, against compiled bf16", 1.5, True),
    ):
        baselines = [
            row["seconds"] for row in rows
            if row["name"].startswith("bf16") and ("compiled" in row["name"]) == compiled
        ]  # fmt: skip
        if baselines:
            yield name, least, "x", min(baselines) / best
