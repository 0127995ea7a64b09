"""The table of public models: what is listed, measured and shown. No other package is needed."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks.results import Results, RowFile
from benchmarks.zoo import __main__ as command_line
from benchmarks.zoo import crossovers as tool
from benchmarks.zoo import measure, table
from benchmarks.zoo.catalogue import GRIDS, models
from benchmarks.zoo.environments import HERE, PACKAGES
from ivcl_fast.kernels import dispatches
from ivcl_fast.models.accelerate import crossovers, patches
from ivcl_fast.models.accelerate.swap import MAX_TOKENS
from tests.support.marks import needs_kernels


def test_entries_are_many_and_named_once():
    entries = models()
    assert len(entries) >= 45
    assert len({(m.environment, m.title) for m in entries}) == len(entries)
    assert {m.environment for m in entries} == PACKAGES.keys()


def test_the_table_of_limits_has_lengths_that_are_fused():
    said = " ".join(cell for line in table.limits()[2:] for cell in line.split("|")[2:])
    lengths = said.replace("/", " ").replace("-", " ").split()
    assert len(lengths) > 10 and max(map(int, lengths)) == MAX_TOKENS


@pytest.fixture
def limit() -> int:
    return crossovers.ANY


@pytest.fixture
def least_window() -> int:
    return patches.LEAST_WINDOW


@pytest.fixture
def row(tmp_path, monkeypatch, limit, least_window):
    """What the measurement of one small model writes, fused up to ``limit`` tokens."""
    monkeypatch.setattr(patches, "LEAST_WINDOW", least_window)
    limits = dict.fromkeys(crossovers.LIMITS, (limit, limit))
    monkeypatch.setattr(crossovers, "LIMITS", limits)
    monkeypatch.setattr(crossovers, "LEAST", {})
    file = tmp_path / "rows.jsonl"
    arguments = [HERE, str(file), "--models", "vit_base_patch16_224", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", ["measure", *arguments, "--tokens", "17", "--seconds", "1"])
    monkeypatch.setattr(torch.nn.init, "trunc_normal_", torch.nn.init.trunc_normal_)
    narrow = {"embed_dim": 32, "num_heads": 2}
    monkeypatch.setattr("benchmarks.zoo.catalogue.WIDTH", narrow)
    measure.main()
    (row,) = RowFile(file).read()
    return row


@needs_kernels
def test_a_row_has_answers_and_speed(row):
    assert row["replaced"] and row["fused_calls"] > 0 and row["environment"] == HERE
    for dtype, limit in (("float32", 1e-5), ("bfloat16", 0.1)):
        for pair in row["errors"][dtype].values():
            assert len(pair) == 2 and max(pair) < limit
    for mode in measure.MODES:
        race = row[mode]["17"]
        assert len(race["ours"]) == len(race["rival"]) == 1 and race["seconds"] > 0
        assert race["fused_calls"] > 0


@pytest.mark.parametrize("limit", [0])
@pytest.mark.parametrize("least_window", [8, 1000])
def test_what_runs_its_own_code_is_not_raced(least_window, row):
    """A product of patches is none of our ops, but not the model's own code, either."""
    for race in (row[mode]["17"] for mode in measure.MODES):
        assert race["fused_calls"] == 0 and ("ours" in race) is (least_window == 8)


def test_all_weights_have_gradients_to_compare():
    """Also behind layers that start as zeros, such as the head of torchvision's models."""
    layers = nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 3)
    model = nn.Sequential(*layers)
    nn.init.zeros_(layers[-1].weight)
    measure.randomized(model)(torch.randn(5, 4)).square().sum().backward()
    assert all(parameter.grad.any() for parameter in model.parameters())


@needs_kernels
def test_tables(row):
    row["training"] = {str(n): {"seconds": 1.0, "ours": [1.3, 1.1], "rival": [1.0]} for n in GRIDS}
    (answers,) = table.tables([row, {"error": "gone"}], "answers")[2:]
    assert "| timm " in answers and "vit_base_patch16_224" in answers and "Attention" in answers
    (speeds,) = table.tables([row], "training")[2:]
    assert speeds.count("1.20 (1.00)") == len(GRIDS)
    cells = [cell.strip() for cell in table.tables([row], "summary")[2].split("|")[1:-1]]
    assert cells == ["training, 17 tokens", "1", "0", *["1.20"] * 3, "1", "0", "1.00 (1.20)"]
    row["training"]["785"] = {"fused_calls": 0}
    assert table.tables([row], "training")[2].rstrip(" |").endswith("| own")
    summary = table.tables([row], "summary")
    assert len(summary) == 2 + len(GRIDS) - 1 + 1 and not any("785" in line for line in summary)


def test_results_are_merged_in_the_catalogues_order(tmp_path):
    names = [(m.environment, m.title) for m in models()]
    rows = [{"environment": e, "name": n, "new": False} for e, n in names[:3]]
    Results("command", rows=rows).write(tmp_path / "zoo.json")
    new = [{"environment": e, "name": n, "new": True} for e, n in (names[4], names[1])]
    found = command_line.merged(new, tmp_path / "zoo.json")
    assert [row["new"] for row in found] == [False, True, False, True]


def test_races_at_other_lengths_are_kept(tmp_path):
    (entry, *_) = models()
    row = {"environment": entry.environment, "name": entry.title}
    before = row | {"training": {"17": "old", "50": "old"}, "inference": {"50": "old"}}
    Results("command", rows=[before]).write(tmp_path / "zoo.json")
    new = row | {"training": {"50": "new"}, "inference": {"785": "new"}}
    (found,) = command_line.merged([new], tmp_path / "zoo.json")
    assert found["training"] == {"17": "old", "50": "new"}
    assert found["inference"] == {"50": "old", "785": "new"}


def test_a_file_tells_what_was_measured():
    flags = SimpleNamespace(minutes=5.0, rounds=9, tokens=[17, 50], models=["SwiGLU, CLIP"])
    assert command_line.command_of(flags) == (
        "python -m benchmarks.zoo --minutes 5 --rounds 9 --tokens 17 50 --models 'SwiGLU, CLIP'"
    )
    flags.tokens, flags.models = list(GRIDS), []
    assert command_line.command_of(flags) == "python -m benchmarks.zoo --minutes 5 --rounds 9"


def test_mistakes(command, tmp_path):
    status, _, told = command(command_line.main, "--models", "vgg")
    assert status and "no model contains any of vgg" in told
    out = ("--out", tmp_path / "zoo.json", "--environments", tmp_path)
    status, _, told = command(command_line.main, "--models", "CLIPVision", *out)
    assert status and "--install" in told and not (tmp_path / "zoo.json").exists()


def test_time_is_shared(monkeypatch):
    now = 100.0
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now)
    clock = measure.Clock(seconds=60, count=3)
    assert clock.start(races=4) == (20 - 8) / 4
    now = 110.0
    clock.stop()
    assert clock.start(races=4) == (50 / 2 - 10) / 4


@needs_kernels
@pytest.mark.parametrize("kind", tool.PARTS)
def test_a_crossover_races_fused_code(kind, monkeypatch, fused_at_every_length):
    monkeypatch.setattr(tool, "WIDTH", 32)
    monkeypatch.setattr(tool, "HEADS", 2)
    x = torch.randn(2, 17, 32)
    outputs, calls = [], []
    for part in tool.contenders(kind).values():
        before = dispatches()
        outputs.append(part(x))
        calls.append((dispatches() - before).total())
    assert calls[0] > max(calls[1:])
    for other in outputs[1:]:
        torch.testing.assert_close(outputs[0], other)
