"""The measurement of public models, on a small one, and its tables."""

from __future__ import annotations

import sys

import torch

from benchmarks import zoo
from benchmarks.results import read
from tests.models.accelerate.models import timm_vit


def test_a_small_model(monkeypatch, tmp_path, fused_at_every_length):
    small = zoo.Model("timm", "small", 8, lambda grid: timm_vit(), zoo.without_fused_attn)
    monkeypatch.setattr(zoo, "models", lambda: iter([small]))
    monkeypatch.setattr(zoo.Model, "inputs", lambda self, tokens: torch.randn(2, 3, 16, 16))
    out = tmp_path / "zoo.json"
    monkeypatch.setattr(sys, "argv", ["zoo", "--rounds", "2", "--tokens", "17", "--out", str(out)])
    zoo.main()
    (row,) = read(out).rows
    assert row["replaced"]["Conv2d"] == 1 and row["version"]
    for mode in zoo.MODES:
        race = row[mode]["17"]
        assert race["seconds"] > 0 and len(race["ours"]) == len(race["rival"]) == 2


def test_summary():
    races = {"17": {"seconds": 1.0, "ours": [1.3, 1.1], "rival": [1.0]}, "50": {"ours": [2.0]}}
    row = {"training": races, "inference": {"785": {"fused_calls": 0}}}
    _, _, first, second = zoo.summary([row, {}])
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in (first, second)]
    assert cells[0] == ["training, 17 tokens", "1", *["1.20"] * 3, "1.00 (1.20)"]
    assert cells[1] == ["training, 50 tokens", "1", *["2.00"] * 3, ""]


def test_limits():
    head, _, packed, separate = zoo.limits()
    assert "AMX, bfloat16" in head and "400 / 257" in packed and "400 / -" in separate
