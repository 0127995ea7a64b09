"""The reader of ACRE, and malformed files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ivcl_fast.data.dataset import Clip, Dataset
from ivcl_fast.data.formats.acre import Acre, object_table
from ivcl_fast.errors import UserError
from ivcl_fast.evaluation.baselines import counting_guess
from ivcl_fast.evaluation.evaluate import Evaluation

PROBLEM: list[dict[str, Any]] = [
    {"light_state": "on", "objects": [4]}, {"light_state": "on", "objects": [4, 9]},
    {"light_state": "off", "objects": [9]}, {"light_state": "off", "objects": [12]},
    {"light_state": "on", "objects": [20, 21, 12]}, {"light_state": "off", "objects": [13, 12]},
    {"light_state": "no", "objects": [20], "label": 1, "type": "potential"},
    {"light_state": "no", "objects": [9], "label": 0, "type": "screen_off"},
    {"light_state": "no", "objects": [12, 20, 21], "label": 2, "type": "indirect", "ref": 3},
    {"light_state": "no", "objects": [13, 12, 4], "label": 2, "type": "direct", "ref": 5},
]  # fmt: skip


def write(root: Path, split: str, value: Any) -> None:
    text = value if isinstance(value, str) else json.dumps(value, indent=4)
    (root / "config" / f"{split}.json").write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("config", "images"):
        (tmp_path / folder).mkdir()
    return tmp_path


def test_four_clips_per_problem(root: Path) -> None:
    write(root, "test", [PROBLEM] * 13)
    data: Dataset = Acre(root)
    assert (data.task, data.num_classes, data.multi_label) == ("acre", 3, False)
    assert (data.splits, data.curve_split) == (("train", "test", "val"), "val")
    clips = data.clips("test")
    assert len(clips) == 52
    assert clips[48:] == [
        Clip("ACRE_test_000012_06", "ACRE_test_000012", 1, (0, 1, 2, 3, 4, 5, 6)),
        Clip("ACRE_test_000012_07", "ACRE_test_000012", 0, (0, 1, 2, 3, 4, 5, 7)),
        Clip("ACRE_test_000012_08", "ACRE_test_000012", 2, (0, 1, 2, 3, 4, 5, 8)),
        Clip("ACRE_test_000012_09", "ACRE_test_000012", 2, (0, 1, 2, 3, 4, 5, 9)),
    ]
    assert [data.describe(label) for label in range(3)] == [
        "the machine is off", "undetermined", "the machine is on",
    ]  # fmt: skip


def test_media_of_the_splits_that_are_there(root: Path) -> None:
    write(root, "train", [PROBLEM] * 2)
    write(root, "test", [PROBLEM])
    data = Acre(root)
    media = data.media()
    assert [m.name for m in media] == ["ACRE_test_000000", "ACRE_train_000000", "ACRE_train_000001"]
    names = [f"ACRE_train_000001_{panel:02d}.png" for panel in range(10)]
    assert media[2].files == tuple(root / "images" / name for name in names)
    assert {clip.media for clip in data.clips("train")} == {m.name for m in media[1:]}
    with pytest.raises(UserError, match=r"val\.json: .*; expected config/<split>\.json"):
        data.clips("val")


def test_what_counting_scores(root: Path) -> None:
    write(root, "test", [PROBLEM, PROBLEM])
    data = Acre(root)
    clips = data.clips("test")[::-1]
    labels = torch.tensor([clip.label for clip in clips])
    evaluation = Evaluation({}, torch.zeros(len(clips), 3), labels, clips)
    # With 20 the machine was on once of one time, with 9 once of two, with 4 always; 12 and 13 were
    # never or seldom there when it was.
    result = counting_guess(data, "test", evaluation)
    scores = result.scores["all"]
    assert result.correct is not None and sum(result.correct.values()) == len(clips) / 2
    assert {name: score.value for name, score in scores.items()} == {
        "query": 0.5, "problem": 0, "direct": 1, "indirect": 1, "screen_off": 0, "potential": 0,
    }  # fmt: skip
    assert scores["query"].chance == pytest.approx(1 / 3)


def test_comp_trains_and_tests_on_other_objects() -> None:
    everything = object_table("iid", "train")
    assert len(set(everything)) == 48 and everything == object_table("sys", "test")
    assert [everything[i] for i in (0, 1, 16, 47)] == [
        ("cube", "gray", "rubber"), ("cube", "gray", "metal"), ("cylinder", "gray", "rubber"),
        ("sphere", "yellow", "metal"),
    ]  # fmt: skip
    train, test = object_table("comp", "train"), object_table("comp", "test")
    assert object_table("comp", "val") == test
    assert (len(train), len(test), len(set(train) | set(test))) == (24, 24, 48)
    assert [train[i] for i in (0, 3, 8, 15, 16, 23)] == [
        ("cube", "gray", "rubber"), ("cube", "blue", "metal"), ("cylinder", "red", "rubber"),
        ("cylinder", "cyan", "metal"), ("sphere", "gray", "rubber"), ("sphere", "yellow", "rubber"),
    ]  # fmt: skip
    assert [test[i] for i in (0, 3, 8, 15, 16, 23)] == [
        ("cube", "red", "rubber"), ("cube", "green", "metal"), ("cylinder", "gray", "rubber"),
        ("cylinder", "yellow", "metal"), ("sphere", "gray", "metal"), ("sphere", "yellow", "metal"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[[{]", "not a JSON file"), ("[[{}]]", "got ValueError: 1 panels"), ("[7]", "TypeError"),
        (json.dumps([[{}] * 10]), "KeyError: 'objects'"),
    ],
)  # fmt: skip
def test_bad_files(root: Path, text: str, what: str) -> None:
    write(root, "train", text)
    with pytest.raises(UserError, match=rf"train\.json.*{what}"):
        Acre(root).clips("train")


def test_missing_folders(root: Path) -> None:
    with pytest.raises(UserError, match=r"expected train\.json"):
        Acre(root).media()
    (root / "images").rmdir()
    for place in (root, root / "none"):
        with pytest.raises(UserError, match=r"expected a regime of ACRE, .*got no "):
            Acre(place)
