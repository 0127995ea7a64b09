"""What a study reads from the folders of its runs: scores, and answers clip by clip."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ivcl_fast.evaluation.metrics import clustered_interval
from ivcl_fast.report.study_results import Compared, compare, correct_shares, read_results

GUESS = "no memory: guesses"
VIDEOS = ("v0", "v0", "v1", "v1", "v2", "v3")
GROUPS = ("hidden", "hidden", "visible", "visible", "visible", "hidden")


def write_answers(folder: Path, correct: list[int], key: str = "correct") -> Path:
    """Write the answers to the first clips. As in a study, one variant has those of a baseline."""
    guess = {GUESS: 0.25} if folder.name.startswith("a") else {}
    clips = [
        {"name": f"c{i}", "video": video, "group": group, key: {"model": answer} | guess}
        for i, (answer, video, group) in enumerate(zip(correct, VIDEOS, GROUPS, strict=False))
    ]
    folder.mkdir()
    (folder / "clips.json").write_text(json.dumps(clips))
    return folder


def test_shares_are_of_the_clips_that_every_seed_has_answered(tmp_path):
    folders = {
        "a": [write_answers(tmp_path / "a0", [1, 1, 0]), write_answers(tmp_path / "a1", [1, 0, 0])],
        "b": [
            write_answers(tmp_path / "b0", [0, 1, 1], "right"),  # as version 0.1.0 called it
            write_answers(tmp_path / "b1", [0, 1]),
        ],
    }
    shares = correct_shares(folders)
    assert list(shares) == ["a", GUESS, "b"]
    keys = [("c0", "v0", "hidden"), ("c1", "v0", "hidden"), ("c2", "v1", "visible")]
    assert shares["a"] == dict(zip(keys, (1, 0.5, 0), strict=True))
    assert shares[GUESS] == dict.fromkeys(keys, 0.25)
    assert shares["b"] == dict(zip(keys[:2], (0, 1), strict=True))


def test_rows_are_compared_with_the_first_on_the_same_clips(tmp_path):
    """Clips of a video are drawn together. The last clip has no answer of ``b``."""
    first, second = [1, 0, 1, 1, 0, 1], [0, 0, 1, 0, 1]
    folders = {
        "a": [write_answers(tmp_path / "a", first)],
        "b": [write_answers(tmp_path / "b", second)],
    }
    compared = compare(folders)
    assert {group for row, group in compared if row == "b"} == {"all", "hidden", "visible"}
    _, of_videos = np.unique(VIDEOS, return_inverse=True)

    def text(values: list[int], chosen: slice, sign: str = "") -> str:
        low, high = clustered_interval(np.multiply(100, values), of_videos[chosen])
        return f"[{low:{sign}.1f}, {high:{sign}.1f}]"

    assert compared["a", "all"] == Compared(text(first, slice(6)))
    gains = [b - a for a, b in zip(first, second, strict=False)]  # -1, 0, 0, -1, +1
    assert compared["b", "all"] == Compared(
        text(second, slice(5)), "-20.0 " + text(gains, slice(5), "+")
    )
    assert compared["b", "visible"] == Compared(
        text(second[2:], slice(2, 5)), "+0.0 " + text(gains[2:], slice(2, 5), "+")
    )
    swapped = compare(dict(reversed(folders.items())))
    assert swapped["a", "all"].difference.startswith("+20.0 [")
    # A single video shows no variation: any share is possible, and any difference.
    assert compared["b", "hidden"].interval == "[0.0, 79.3]"
    assert compared["b", "hidden"].difference == "-50.0 [-89.7, +69.0]"


def test_a_row_without_a_clip_in_common_is_not_compared(tmp_path):
    folders = {
        "a": [write_answers(tmp_path / "a0", [1]), write_answers(tmp_path / "a1", [0])],
        "b": [write_answers(tmp_path / "b0", [1]), write_answers(tmp_path / "b1", [])],
    }
    assert {row for row, _ in compare(folders)} == {"a", GUESS}


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
