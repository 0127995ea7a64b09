"""What docs/performance.md promises for one H100, beside what was measured."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.gpu.results import AGREE, Results, agrees, fastest, rows, timed


def measured_targets(results: Results) -> Iterator[tuple[str, float, str, float]]:
    """Name, target, unit and value of each that could be measured."""
    found = timed(results, "base64")
    ours = fastest(found, "ours")
    if ours is not None and agrees(ours, found):
        yield "base64 step", 2500, " clips/s", ours["clips_per_second"]
        for name, least, rivals in (
            ("base64 step, vs eager bf16", 3, [r for r in found if "compiled" not in r["name"]]),
            ("base64 step, vs compiled", 1.5, [r for r in found if "compiled" in r["name"]]),
        ):
            rival = fastest([r for r in rivals if agrees(r, found)], "reference, bf16")
            if rival is not None:
                yield name, least, "x", rival["seconds"] / ours["seconds"]
    by_tokens = [
        r for r in timed(results, "attention") if r["tokens"] <= 64 and r["difference"] < AGREE
    ]
    own = [r for r in by_tokens if r["name"] == "ours"]
    if own and all("of_copy_bandwidth" in r for r in own):
        least = 100 * min(r["of_copy_bandwidth"] for r in own)
        yield "short_attention up to 64 tokens, of copying", 60, " %", least
    ratios = [
        r["seconds"] / o["seconds"] for o in own for r in by_tokens if r["shape"] == o["shape"]
        if r["name"] not in ("ours", "explicit softmax")
    ]  # fmt: skip
    if ratios:
        yield "short_attention up to 64 tokens, vs the best rival", 1, "x", min(ratios)
    norms = [
        r for r in timed(results, "kernels") if r["case"].startswith("add_layer_norm")
        if r["kernel"] == "forward" and r["beyond_cache"] and r["bytes"] > 50e6
    ]  # fmt: skip
    if norms:
        yield "add_layer_norm forward", 2.5, " TB/s", max(r["GB/s"] for r in norms) / 1e3
    speeds = {r["name"]: r["clips_per_second"] for r in rows(results, "store") if "clips" in r
              and "clips_per_second" in r}  # fmt: skip
    stored = [speed for name, speed in speeds.items() if name.startswith("store")]
    still = [speed for name, speed in speeds.items() if not name.startswith("store")]
    if stored and still:
        share = 100 * max(stored) / max(still)
        yield "training from the store, of synthetic tensors", 97, " %", share
