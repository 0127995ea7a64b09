"""The page of a study: what it reads from the folders of its runs, and its tables."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from ivcl_fast.report import study
from ivcl_fast.report.study import doubling_table, mean_and_deviation, titled_tables
from ivcl_fast.report.study_results import Compared, compare, correct_shares, read_results
from ivcl_fast.studies.definitions import Study, Variant

GUESS = "no memory: guesses"
VIDEOS = ("v0", "v0", "v1", "v1", "v2", "v3")
GROUPS = ("hidden", "hidden", "visible", "visible", "visible", "hidden")
TOP1 = {"top1": {"percent": True, "chance": 0.25}}


def write_answers(folder: Path, correct: list[int]) -> Path:
    """Write the answers to the first clips. One variant, ``a``, has those of a baseline too."""
    guess = {GUESS: 0.25} if folder.name.startswith("a") else {}
    clips = [
        {"name": f"c{i}", "video": video, "group": group, "correct": {"model": answer} | guess}
        for i, (answer, video, group) in enumerate(zip(correct, VIDEOS, GROUPS, strict=False))
    ]
    folder.mkdir()
    (folder / "clips.json").write_text(json.dumps(clips))
    return folder


def test_shares_are_of_the_clips_that_every_seed_has_answered(tmp_path):
    folders = {
        "a": [write_answers(tmp_path / "a0", [1, 1, 0]), write_answers(tmp_path / "a1", [1, 0, 0])],
        "b": [write_answers(tmp_path / "b0", [0, 1, 1]), write_answers(tmp_path / "b1", [0, 1])],
    }
    shares = correct_shares(folders)
    assert list(shares) == ["a", GUESS, "b"]
    keys = [("c0", "v0", "hidden"), ("c1", "v0", "hidden"), ("c2", "v1", "visible")]
    assert shares["a"] == dict(zip(keys, (1, 0.5, 0), strict=True))
    assert shares[GUESS] == dict.fromkeys(keys, 0.25)
    assert shares["b"] == dict(zip(keys[:2], (0, 1), strict=True))


def test_rows_are_compared_with_the_first_on_the_same_clips(tmp_path):
    """Clips of a video are drawn together. The last clip has no answer of ``b``."""
    folders = {
        "a": [write_answers(tmp_path / "a", [1, 0, 1, 1, 0, 1])],
        "b": [write_answers(tmp_path / "b", [0, 0, 1, 0, 1])],
    }
    compared = compare(folders)
    assert {group for row, group in compared if row == "b"} == {"all", "hidden", "visible"}
    # Videos have gains of -1 and 0, 0 and -1, and +1: draws of the third or of the others alone.
    assert compared["b", "all"].difference == "-20.0 [-50.0, +100.0]"
    assert compared["b", "visible"].difference == "+0.0 [-50.0, +100.0]"
    assert compared["a", "all"].difference == ""
    # One video shows no variation: another may differ with a probability of up to 79.3 %.
    assert compared["b", "hidden"] == Compared("[0.0, 79.3]", "-50.0 [-89.7, +69.0]")
    (tmp_path / "a" / "clips.json").unlink()
    (tmp_path / "b" / "clips.json").unlink()
    assert compare(folders) == {}


def test_a_row_without_a_clip_in_common_is_not_compared(tmp_path):
    folders = {
        "a": [write_answers(tmp_path / "a0", [1]), write_answers(tmp_path / "a1", [0])],
        "b": [write_answers(tmp_path / "b0", [1]), write_answers(tmp_path / "b1", [])],
    }
    assert {row for row, _ in compare(folders)} == {"a", GUESS}


def test_the_interval_of_a_difference_is_that_of_two_proportions(tmp_path):
    rng = np.random.default_rng(0)
    for run, rate in {"x": 0.5, "y": 0.7}.items():
        clips = [
            {"name": f"c{i}", "video": f"v{i}", "correct": {"itself": float(rng.random() < rate)}}
            for i in range(1000)
        ]
        (tmp_path / run).mkdir()
        (tmp_path / run / "clips.json").write_text(json.dumps(clips))
    compared = compare({name: [tmp_path / name] for name in "xy"})
    mean, low, high = map(float, re.findall(r"[+-]\d+\.\d", compared["y", "all"].difference))
    spread = 1.96 * 100 * ((0.5 * 0.5 + 0.7 * 0.3) / 1000) ** 0.5
    assert mean == pytest.approx(20, abs=2 * spread) and low < mean < high
    assert high - low == pytest.approx(2 * spread, rel=0.1)


def test_doubling_is_fitted_to_the_clips_that_all_have_answered(tmp_path):
    """Of three sizes, each twice the last, the middle one lacks a clip. All are of one video."""
    for run, correct in {"1": (0, 0, 1), "2": (0, 1), "4": (1, 1, 1)}.items():
        clips = [
            {"name": f"c{i}", "video": "v", "group": group, "correct": {"model": c}}
            for i, (c, group) in enumerate(
                zip(correct, ("hidden", "visible", "hidden"), strict=False)
            )
        ]
        (tmp_path / run).mkdir()
        (tmp_path / run / "clips.json").write_text(json.dumps(clips))
    labels = {1: "1", 2: "2", 4: "4"}
    asked = Study("?", "size", tuple(map(Variant, "124")), axes={"size": labels})
    table = doubling_table(asked, {name: [tmp_path / name] for name in "124"})
    # hidden: 0, 0, 100 %, so half of 100 per doubling, and the line is at -16.7, 33.3 and 83.3;
    # visible: 0, 100, 100; all: 0, 50, 100.
    assert [row[:2] for row in table.rows] == [["size", g] for g in ("all", "hidden", "visible")]
    assert [row[2] for row in table.rows] == ["+50.0 [-69.0, +89.7]"] * 3
    assert [row[3] for row in table.rows] == ["0.0", "33.3", "33.3"]


def test_scores_are_read_by_row_and_chance_is_that_of_the_model(tmp_path):
    for seed, value in enumerate((0.5, 0.7)):
        rows = {
            "IV-CL": {"all": {"top1": {"value": value, "chance": 0.1, "percent": True}}},
            GUESS: {"all": {"top1": {"value": 0.2, "chance": 0.3, "percent": True}}},
        }
        if seed == 0:
            rows[GUESS]["all"]["top5"] = {"value": 0.4, "chance": 0.6, "percent": True}
        (tmp_path / str(seed)).mkdir()
        (tmp_path / str(seed) / "scores.json").write_text(json.dumps(rows))
    results, chance = read_results({"longer": [tmp_path / "0", tmp_path / "1"]})
    assert results == {
        "longer": {"all": {"top1": [0.5, 0.7]}},
        GUESS: {"all": {"top1": [0.2, 0.2], "top5": [0.4]}},
    }
    assert list(chance) == ["top1"] and chance["top1"]["chance"] == pytest.approx(0.1)


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


def test_the_page_has_its_command_quoted_and_a_figure(tmp_path):
    (tmp_path / "run").mkdir()
    scores = {"A": {"all": {"top1": {"value": 0.5, **TOP1["top1"]}}}}
    (tmp_path / "run" / "scores.json").write_text(json.dumps(scores))
    asked, folders = Study("?", "thing", (Variant("A"),)), {"table": {"A": [tmp_path / "run"]}}
    study.write(tmp_path, "mine", asked, folders, ["--data", "csv:my clips/a.csv"], 1, 1)
    command = "`python -m ivcl_fast.sweep mine --data 'csv:my clips/a.csv' --seeds 1`"
    assert command in (tmp_path / "study.md").read_text()
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")
