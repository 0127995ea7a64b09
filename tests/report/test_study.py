"""The page of a study: what it reads from the folders of its runs, and its tables."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ivcl_fast.report.study import Compared, compare, correct_shares, read_results, scores_table

GUESS = "cone heuristic"
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
    assert compared["b", "hidden"] == Compared("[0.0, 79.3]", "-50.0 [-89.7, +69.0]", 2)
    (tmp_path / "a" / "clips.json").unlink()
    (tmp_path / "b" / "clips.json").unlink()
    assert compare(folders) == {}


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


def test_table_has_means_deviations_intervals_and_differences():
    results = {
        "A": {"all": {"top1": [0.1, 0.2], "l1": [2.0, 3.0]}, "hidden": {"top1": [0.3, 0.3]}},
        "guess": {"all": {"top1": [0.4]}},
    }
    chance = TOP1 | {"l1": {"percent": False, "chance": 5.0}}
    compared = {
        ("A", "all"): Compared("[12.0, 18.0]", clips=1650),
        ("guess", "all"): Compared("[39.0, 41.0]", "+25.0 [+23.0, +27.0]"),
    }
    table = scores_table("thing", results, chance, compared)
    assert table.header == ["thing", "clips", "top-1", "L1 (cells)", "difference"]
    assert table.rows == [
        ["A", "all (1,650)", "15.0 ± 7.1 % [12.0, 18.0]", "2.50 ± 0.71", ""],
        ["A", "hidden", "30.0 ± 0.0 %", "", ""],
        ["guess", "all", "40.0 % [39.0, 41.0]", "", "+25.0 [+23.0, +27.0]"],
        ["chance", "all", "25.0 %", "5.00", ""],
    ]
