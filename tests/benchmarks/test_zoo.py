"""The benchmark of public models, on a small one, and its table."""

from __future__ import annotations

import torch

from benchmarks import zoo
from benchmarks.measure import measure
from tests.models.accelerate.models import timm_vit


def test_a_small_model(monkeypatch, fused_at_every_length):
    small = zoo.Model("timm", "small", 8, lambda grid: timm_vit(), zoo.without_fused_attn)
    monkeypatch.setattr(zoo.Model, "inputs", lambda *sizes: torch.randn(2, 3, 16, 16))
    rows = []
    for mode in zoo.MODES:
        measure(zoo.benchmark(small, mode, 17, 2), rows.append)
    assert [row["name"] for row in rows] == ["ours", "original", "one line"] * 2
    assert all(row["seconds"] > 0 for row in rows)


def test_summary():
    def rows(name, mode, **seconds):
        return [
            {"benchmark": name, "mode": mode, "tokens": 17, "name": key, "seconds": value}
            for key, value in seconds.items()
        ]

    found = rows("a", "training", ours=1.0, original=1.2, **{"one line": 1.2})
    found += rows("b", "training", ours=1.0, original=1.4) + rows("b", "inference", original=1.0)
    found += rows("c", "inference", ours=2.0, original=1.0)
    _, _, first, second = zoo.summary(found)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (first, second)]
    assert cells[0] == ["training, 17 tokens", "2", "1.20", "1.30", "1.40", "1.00 (1.20)"]
    assert cells[1] == ["inference, 17 tokens", "1", *["0.50"] * 3, ""]
