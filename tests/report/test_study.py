"""The tables and the figure of a study."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ivcl_fast.report import study
from ivcl_fast.report.study import colors_of, curve, mean_and_deviation, titled_tables
from ivcl_fast.report.study_results import Compared
from ivcl_fast.studies.definitions import Study, Variant


@pytest.mark.parametrize(("percent", "height"), [(True, 25.0), (False, 0.25)])
def test_chance_and_scores_are_drawn_on_one_scale(
    percent: bool, height: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(study, "save", lambda figure, path: drawn.append(figure))
    metric = "top1" if percent else "l1"
    scores = {"one": {"all": {metric: [0.25]}}}
    chance = {metric: {"chance": 0.25, "percent": percent}}
    asked = Study("?", "size", (Variant("one"),))
    folders = {"table": {"one": [tmp_path]}}
    study.draw(tmp_path / "study.png", asked, folders, {"table": (scores, chance)})
    bars, curves = drawn[0].axes
    (bar,) = bars.patches
    assert bar.get_height() == height
    for axes in (bars, curves):
        (line,) = axes.lines
        assert list(line.get_ydata()) == [height] * 2


TOP1 = {"top1": {"percent": True, "chance": 0.25}}


def test_table_has_means_and_deviations():
    results = {"A": {"all": {"top1": [0.1, 0.2]}}, "B": {"all": {"top1": [0.4]}}}
    ((title, table),) = titled_tables("thing", results, TOP1, {}).items()
    assert title == "Every metric:" and table.header == ["thing", "clips", "top-1"]
    assert table.rows[:2] == [["A", "all", "15.0 ± 7.1 %"], ["B", "all", "40.0 %"]]
    assert table.rows[2:] == [["chance", "all", "25.0 %"]]
    assert mean_and_deviation([2.0, 3.0], percent=False) == "2.50 ± 0.71"


def test_groups_of_clips_stand_side_by_side():
    results = {
        "A": {"all": {"top1": [0.1], "l1": [2.0]}, "hidden": {"top1": [0.3], "l1": [3.0]}},
        "guess": {"all": {"top1": [0.4]}},
    }
    chance = TOP1 | {"l1": {"percent": False, "chance": 5.0}}
    compared = {
        ("A", "all"): Compared("[8.0, 12.0]"),
        ("A", "hidden"): Compared("[20.0, 40.0]"),
        ("guess", "all"): Compared("[39.0, 41.0]", "+30.0 [+28.0, +32.0]"),
    }
    overview, every = titled_tables("thing", results, chance, compared).values()
    assert overview.header == ["thing", "all", "hidden", "all: difference", "hidden: difference"]
    assert overview.rows == [
        ["A", "10.0 %", "30.0 %", "", ""],
        ["guess", "40.0 %", "", "+30.0 [+28.0, +32.0]", ""],
        ["chance", "25.0 %", "", "", ""],
    ]
    assert every.header == ["thing", "clips", "top-1", "L1 (cells)", "difference"]
    assert every.rows == [
        ["A", "all", "10.0 % [8.0, 12.0]", "2.00", ""],
        ["A", "hidden", "30.0 % [20.0, 40.0]", "3.00", ""],
        ["guess", "all", "40.0 % [39.0, 41.0]", "", "+30.0 [+28.0, +32.0]"],
        ["chance", "all", "25.0 %", "5.00", ""],
    ]


def test_a_colour_means_one_variant_and_gray_a_baseline():
    guess = "no memory: guesses under a visible cone"
    assert colors_of(["A", guess, "B"]) == {"A": "C0", guess: "0.6", "B": "C1"}


def test_curves_join_seeds(tmp_path):
    for seed, value in enumerate((0.1, 0.3)):
        run = tmp_path / str(seed)
        run.mkdir()
        records = [
            {"stage": "pretrain", "step": 1, "clips": 4, "val_top1": 9.0},
            {"stage": "finetune", "step": 1, "clips": 4, "val_top1": value},
            {"stage": "finetune", "step": 2, "clips": 8, "loss": 1.0},
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    assert curve([tmp_path / "0", tmp_path / "1"], "top1") == {4: [0.1, 0.3]}


def test_the_command_on_the_page_can_be_typed(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "draw", lambda *arguments: None)
    (tmp_path / "run").mkdir()
    scores = {"A": {"all": {"top1": {"value": 0.5, **TOP1["top1"]}}}}
    (tmp_path / "run" / "scores.json").write_text(json.dumps(scores))
    asked, folders = Study("?", "thing", (Variant("A"),)), {"table": {"A": [tmp_path / "run"]}}
    study.write(tmp_path, "mine", asked, folders, ["--data", "csv:my clips/a.csv"], 1, 1)
    command = "`python -m ivcl_fast.sweep mine --data 'csv:my clips/a.csv' --seeds 1`"
    assert command in (tmp_path / "study.md").read_text()
