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
