"""``train --data videos:DIR`` and its like, from files of any kind to the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ivcl_fast.evaluate import main as evaluate_main
from ivcl_fast.train import main
from tests.support.own_videos import write_classes, write_one
from tests.support.small_models import FRAME_FLAGS, RUN_FLAGS

FLAGS = (*RUN_FLAGS, *FRAME_FLAGS, "--name", "run")


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """20 videos of 7 kinds in two classes, without splits."""
    return write_classes(tmp_path_factory.mktemp("own") / "clips", splits=False)


def test_a_folder_of_classes(videos, tmp_path, command):
    code, out, err = command(main, "--data", f"videos:{videos}", *FLAGS, "--out", tmp_path)
    assert code == 0, err
    run = tmp_path / "run"
    assert (run / "pretrain/model.safetensors").is_file()
    assert json.loads((run / "answers.json").read_text())["names"] == ["left", "right"]
    scores = json.loads((run / "scores.json").read_text())["pretrained: IV-CL"]["all"]
    assert list(scores) == ["top1", "class_mean"] and scores["class_mean"]["chance"] == 0.5
    report = (run / "report.md").read_text()
    assert "confusion.png" in report and "8 clips of pretraining, 8 clips of finetuning" in report
    assert "could not be used" not in report, "all 20 videos were decoded"
    assert (run / "confusion.png").read_bytes().startswith(b"\x89PNG")
    assert "mean class" in out
    code, again, _ = command(evaluate_main, run, "--device", "cpu")
    assert code == 0 and "mean class" in again
    code, answer, _ = command(evaluate_main, run, "--predict", videos / "left" / "00.mp4")
    assert code == 0 and {line.split("%")[1].strip() for line in answer.splitlines()} == {
        "left", "right",
    }  # fmt: skip


def test_a_folder_without_classes_pretrains_only(tmp_path, command):
    for number in range(6):
        write_one(tmp_path / "clips", number)
    source = f"videos:{tmp_path / 'clips'}"
    code, out, err = command(main, "--data", source, *FLAGS, "--out", tmp_path)
    assert code == 0, err
    run = tmp_path / "run"
    assert f"{source} has no classes: pretraining only" in out
    assert (run / "pretrain/model.safetensors").is_file() and not (run / "finetune").exists()
    report = (run / "report.md").read_text()
    assert "reconstruction.png" in report and "finetuning" not in report
    code, _, err = command(
        main, "--data", source, *FLAGS, "--out", tmp_path / "b", "--stage", "finetune"
    )
    assert code == 2 and "--stage: finetune needs classes, which videos:" in err
    assert not (tmp_path / "b").exists()


def test_a_list_with_several_labels(videos, tmp_path, command):
    found = sorted(path for path in videos.glob("*/*") if path.name[0].isdigit())
    lines = [f"{path} {n % 2},{2 + n % 3}" for n, path in enumerate(found)]
    (tmp_path / "train.csv").write_text("\n".join(lines[:14]))
    (tmp_path / "val.csv").write_text("\n".join(lines[14:]))
    source = f"csv:{tmp_path / 'train.csv'}"
    code, _, err = command(
        main, "--data", source, *FLAGS, "--out", tmp_path, "--no-pictures", "--loader", "stream"
    )
    assert code == 0, err
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert list(scores["pretrained: IV-CL"]["all"]) == ["map"]
    assert (tmp_path / "train-data" / "index" / "index.json").is_file()


def test_data_with_other_classes_are_refused(videos, tmp_path, command):
    command(main, "--data", f"videos:{videos}", *FLAGS, "--out", tmp_path, "--no-pictures")
    other = tmp_path / "other"
    for name, target in (("left", "left"), ("up", "right")):
        other.mkdir(exist_ok=True)
        (other / name).symlink_to(videos / target)
    code, _, err = command(evaluate_main, tmp_path / "run", "--data", f"videos:{other}")
    assert code == 2 and f"--data: class 1 of 'videos:{other}' is 'up'; accepted: " in err
