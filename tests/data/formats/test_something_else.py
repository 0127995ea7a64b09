"""The reader of Something-Else, and malformed files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ivcl_fast.data.dataset import Clip, Dataset, Media
from ivcl_fast.data.formats.something_else import TASKS, SomethingElse
from ivcl_fast.errors import UserError

# As in the data set, the order of the classes is neither that of the file nor the alphabet's.
LABELS = {"Moving something up": 2, "Something falling like a rock": 0, "Closing something": 1}
UP, ROCK, CLOSING = (
    "Moving [something] up", "[Something] falling like a rock", "Closing [something]",
)  # fmt: skip
FILES = {
    "compositional": ("compositional", "train", "validation", "labels"),
    "compositional_shuffled": ("compositional_shuffled", "train", "validation", "labels"),
    "compositional_oneobject": ("compositional_oneobject", "train", "validation", "labels"),
    "fewshot_base": ("fewshot", "base_training_set", "base_validation_set", "base_labels"),
    "fewshot_5shot": (
        *("fewshot", "finetune_5shot_training", "finetune_5shot_validation"),
        "finetune_labels",
    ),
    "fewshot_10shot": (
        *("fewshot", "finetune_10shot_train", "finetune_10shot_validation"),
        "finetune_labels",
    ),
}


def entry(name: Any, template: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "template": template, "label": "", "placeholders": ["a box"], **more}


TRAIN = [entry("203403", UP, new_placeholdes=[""]), entry("2", ROCK)]
VALIDATION = [entry(17, CLOSING), entry("2003", ROCK)]


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


def write_task(
    root: Path,
    task: str = "compositional",
    train: Any = TRAIN,
    validation: Any = VALIDATION,
    labels: Any = LABELS,
    parent: str = "dataset_splits",
) -> None:
    folder, *names = FILES[task]
    for name, content in zip(names, (train, validation, labels), strict=True):
        write(root / parent / folder / f"{name}.json", content)


@pytest.mark.parametrize("parent", ["dataset_splits", "code/dataset_splits"])
@pytest.mark.parametrize("task", FILES)
def test_tasks(tmp_path: Path, task: str, parent: str) -> None:
    write_task(tmp_path, task, parent=parent)
    data: Dataset = SomethingElse(tmp_path, task)
    assert data.splits == ("train", "validation")
    assert (data.root, data.task, data.num_classes, data.multi_label) == (tmp_path, task, 3, False)
    assert data.clips("train") == [Clip("203403", "203403", 2), Clip("2", "2", 0)]
    assert data.clips("validation") == [Clip("17", "17", 1), Clip("2003", "2003", 0)]
    assert [data.describe(label) for label in range(3)] == [
        "Something falling like a rock", "Closing something", "Moving something up",
    ]  # fmt: skip
    assert set(FILES) | {"something_v2"} == set(TASKS)


@pytest.mark.parametrize(
    ("folder", "prefix"), [("", "something-something-v2-"), ("annotations", ""), ("labels", "")]
)
def test_plain_something_something(tmp_path: Path, folder: str, prefix: str) -> None:
    """Its label file has classes as strings."""
    write(tmp_path / folder / f"{prefix}train.json", TRAIN)
    write(tmp_path / folder / f"{prefix}validation.json", VALIDATION)
    write(tmp_path / folder / f"{prefix}labels.json", {k: str(v) for k, v in LABELS.items()})
    data = SomethingElse(tmp_path, "something_v2")
    assert [clip.label for clip in data.clips("train")] == [2, 0]


def test_media_are_the_videos_of_both_splits(tmp_path: Path) -> None:
    """They are sorted by name and need not exist; videos are preferred to frames."""
    write_task(tmp_path)
    videos = tmp_path / "20bn-something-something-v2"
    expected = [Media(n, (videos / f"{n}.webm",)) for n in ("17", "2", "2003", "203403")]
    assert SomethingElse(tmp_path).media() == expected
    (tmp_path / "frames").mkdir()
    videos.mkdir()
    assert SomethingElse(tmp_path).media() == expected


def test_frames_instead_of_videos(tmp_path: Path) -> None:
    """In the order of their numbers, however they are named."""
    write_task(tmp_path)
    frames = tmp_path / "frames"
    for name in ("2/2_000010.jpg", "2/2_000009.jpg", "2/DONE", "17/0001.jpg", "17/0002.jpg"):
        write(frames / name, "")
    media = {
        m.name: [str(f.relative_to(frames)) for f in m.files]
        for m in SomethingElse(tmp_path).media()
    }
    assert media == {
        "17": ["17/0001.jpg", "17/0002.jpg"], "2": ["2/2_000009.jpg", "2/2_000010.jpg"],
        "2003": [], "203403": [],
    }  # fmt: skip


def test_repeated_entries(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    write_task(tmp_path, train=[*TRAIN, TRAIN[1]])
    assert [clip.name for clip in SomethingElse(tmp_path).clips("train")] == ["203403", "2"]
    assert "skipped 1 repeated entries" in caplog.text
    write_task(tmp_path, train=[*TRAIN, entry("2", UP)])
    with pytest.raises(UserError, match=r"train\.json: id 2 .*two templates"):
        SomethingElse(tmp_path).clips("train")


@pytest.mark.parametrize(
    ("train", "what"),
    [
        ([], "expected clips, got none"), (7, r"expected a list of \{"), ("[{", "not a JSON file"),
        ([TRAIN[0], {"id": "1"}], r"expected a list of \{"),
        ([entry("5", "Eating [something]")], r"id 5: template 'Eating \[something\]' has no label"),
    ],
)  # fmt: skip
def test_bad_splits(tmp_path: Path, train: Any, what: str) -> None:
    write_task(tmp_path, train=train)
    with pytest.raises(UserError, match=rf"train\.json.*{what}"):
        SomethingElse(tmp_path).clips("train")


def test_missing_files_and_wrong_names(tmp_path: Path) -> None:
    write_task(tmp_path)
    with pytest.raises(
        UserError, match=r"fewshot_5shot: expected dataset_splits/fewshot/finetune_labels\.json or"
    ):
        SomethingElse(tmp_path, "fewshot_5shot")
