"""``train --data videos:DIR`` and its like, from files of any kind to the report."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch

from ivcl_fast import load_clip
from ivcl_fast.analysis.clips import ClipReader
from ivcl_fast.analysis.finished_runs import FinishedRun
from ivcl_fast.evaluate import main as evaluate_main
from ivcl_fast.evaluation.evaluate import predict
from ivcl_fast.train import main
from ivcl_fast.visualize import main as visualize_main
from tests.support.own_videos import write_one
from tests.support.small_models import FRAME_FLAGS, RUN_FLAGS

FLAGS = (*RUN_FLAGS, *FRAME_FLAGS, "--name", "run")


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """20 videos of 7 kinds in two classes, without splits."""
    root = tmp_path_factory.mktemp("own") / "clips"
    for number in range(20):
        write_one(root / ("left", "right")[number % 2], number)
    return root


@pytest.fixture(scope="module")
def trained(videos, tmp_path_factory) -> Path:
    """The folder of a run on them."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        flags = ["--data", f"videos:{videos}", *FLAGS, "--out", str(folder), "--no-pictures"]
        patch.setattr(sys, "argv", ["train", *flags])
        main()
    return folder / "run"


HOSTILE = ("left <b>$|`[a](b)\x1b[2J", os.fsdecode(b"right \xff"))
"""Names that mean something in HTML, Markdown, mathematics and a terminal, and one in Latin-1."""


def test_a_folder_of_classes(videos, tmp_path, command):
    """Their names may be anything; none of them reaches a terminal or a report as it is."""
    clips = tmp_path / "clips"
    for name, target in zip(HOSTILE, ("left", "right"), strict=True):
        (clips / name).mkdir(parents=True)
        for path in (videos / target).iterdir():
            (clips / name / path.name).symlink_to(path)
    (clips / HOSTILE[0] / "a\n# <i>.mp4").write_bytes(b"no video")
    flags = (*FLAGS, "--pretrain-clips", 11, "--out", tmp_path)  # two steps, as with 8
    code, out, err = command(main, "--data", f"videos:{clips}", *flags)
    assert code == 0, err
    assert "data: classify, 2 classes; clips: " in out
    run = tmp_path / "run"
    assert (run / "pretrain/model.safetensors").is_file()
    assert json.loads((run / "answers.json").read_text())["names"] == [*HOSTILE]
    scores = json.loads((run / "scores.json").read_text())["IV-CL"]["all"]
    assert list(scores) == ["top1", "class_mean"] and scores["class_mean"]["chance"] == 0.5
    report = (run / "report.md").read_text()
    assert "8 clips of pretraining, 8 clips of finetuning" in report
    card = (run / "finetune" / "README.md").read_text()
    assert "1 videos could not be used" in report and "a?# &lt;i&gt;.mp4: not a video" in report
    for text in (out, err, report, card):
        assert not re.search(r"\x1b|<b>|\n# <i>|\udcff", text)
    assert "mean class" in out
    code, again, _ = command(evaluate_main, run, "--device", "cpu")
    assert code == 0 and "mean class" in again
    code, answer, _ = command(evaluate_main, run, "--predict", videos / "left" / "00.mp4")
    assert code == 0 and {line.split("%")[1].strip() for line in answer.splitlines()} == {
        "left <b>$|`[a](b)?[2J", "right ?",
    }  # fmt: skip


def test_pictures_of_clips_that_are_named_by_paths(trained, tmp_path, command):
    flags = ("--clips", 2, "--format", "png", "--out", tmp_path)
    code, _, err = command(visualize_main, trained, *flags)
    assert code == 0, err
    assert {path.name.split("_")[0] for path in tmp_path.glob("*.png")} == {"left", "right"}


def test_a_folder_without_classes_pretrains_only(tmp_path, command):
    for number in range(6):
        write_one(tmp_path / "clips", number)
    source, before = f"videos:{tmp_path / 'clips'}", set(tmp_path.rglob("*"))
    flags = "--data", source, *FLAGS, "--out", tmp_path
    code, _, err = command(main, *flags, "--stage", "finetune")
    assert code == 2 and "--stage: expected all or pretrain for videos:" in err
    assert set(tmp_path.rglob("*")) == before  # nothing was decoded
    code, out, err = command(main, *flags)
    assert code == 0, err
    run = tmp_path / "run"
    assert f"{source} has no classes: pretraining only" in out
    assert (run / "pretrain/model.safetensors").is_file() and not (run / "finetune").exists()
    report = (run / "report.md").read_text()
    assert "report.html" in report and "finetuning" not in report


def test_a_list_with_several_labels(videos, tmp_path, command):
    found = sorted(path for path in videos.glob("*/*") if path.name[0].isdigit())
    lines = [f"{path},{n % 2};{2 + n % 3}" for n, path in enumerate(found)]
    (tmp_path / "train.csv").write_text("\n".join(lines[:14]))
    (tmp_path / "val.csv").write_text("\n".join(lines[14:]))
    source = f"csv:{tmp_path / 'train.csv'}"
    code, out, err = command(
        main, "--data", source, *FLAGS, "--out", tmp_path, "--no-pictures", "--loader", "stream"
    )
    assert code == 0, err
    assert "data: classify, 5 classes, several labels per clip; clips: 14 in train" in out
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert list(scores["IV-CL"]["all"]) == ["map"]
    assert (tmp_path / "train-data" / "index" / "index.safetensors").is_file()


def test_a_run_keeps_to_its_classes(videos, trained, tmp_path, command):
    """Renamed and added classes have other numbers than the run's model: refused at once."""
    run, own = shutil.copytree(trained, tmp_path / "run"), tmp_path / "own"
    shutil.copytree(videos, own)
    (own / "left").rename(own / "up")
    settings = json.loads((run / "config.json").read_text())
    shutil.rmtree(run / "pretrain")
    settings["data"]["source"] = f"videos:{own}"
    (run / "config.json").write_text(json.dumps(settings))
    for main_of, arguments in ((evaluate_main, [run]), (main, ["--resume", run])):
        code, _, err = command(main_of, *arguments)
        assert code == 2 and "--data: expected the run's" in err and err.count("\n") == 1, err
    assert not (run / "pretrain").exists()


def test_several_clips_of_a_stride_are_averaged(videos, tmp_path, command):
    flags = ("--frame-stride", 1, "--eval-clips", 3, "--mirror", "--no-pictures")
    flags += ("--crop", "center")
    source = f"videos:{videos}"
    code, _, err = command(main, "--data", source, *FLAGS, *flags, "--out", tmp_path)
    assert code == 0, err
    run = FinishedRun.open(tmp_path / "run", "cpu")
    model = run.load("finetune")
    options = dict(batch_size=8, num_frames=4, seed=0)
    parts = [
        predict(model, [loader], run.device, run.amp)
        for loader in run.data.eval_loaders("val", 3, **options)
    ]
    assert not torch.equal(parts[0][0], parts[2][0]), "the clips differ"
    mean = torch.stack([logits for logits, _, _ in parts]).mean(0)
    evaluation = run.evaluate(model, "val")
    assert torch.allclose(evaluation.logits, mean, atol=1e-6)
    card = (tmp_path / "run" / "finetune" / "README.md").read_text()
    assert '"frame stride": 1' in card and '"crop": "center"' in card
    video = videos / "left" / "00.mp4"
    shown = ClipReader(run).file(video, "--predict").frames.unsqueeze(0)
    assert torch.equal(shown, load_clip(video, model.cfg, frame_stride=1, crop="center"))


def test_answers_for_videos_are_those_of_the_results(videos, tmp_path, command):
    """A model of last frames sees the last one of a video, also where clips are parts of it."""
    flags = ("--stage", "finetune", "--last-frame-clips", 8, "--frame-stride", 1, "--amp", "off")
    flags += ("--data", f"videos:{videos}", "--no-pictures", "--out", tmp_path)
    code, _, err = command(main, *FLAGS, *flags)
    assert code == 0, err
    for model in ("finetune", "last-frame"):
        asked = (tmp_path / "run" / model, "--device", "cpu", "--out")
        assert command(evaluate_main, *asked, tmp_path / "a.json")[0] == 0
        assert command(evaluate_main, *asked, tmp_path / "b.json", "--predict", videos)[0] == 0
        measured = json.loads((tmp_path / "a.json").read_text())
        found = {one["video"]: one for one in json.loads((tmp_path / "b.json").read_text())}
        for clip in measured["clips"]:
            shares = torch.tensor(clip["logits"]).softmax(0).tolist()
            expected = dict(zip(measured["classes"], shares, strict=True))
            assert found[clip["video"]]["answers"] == pytest.approx(expected, abs=1e-5)


def test_answers_for_a_folder_of_videos(trained, tmp_path, command):
    run, clips = trained, tmp_path / "clips"
    for number in (1, 2, 6):  # the last is a folder of frames
        write_one(clips / "more", number)
    (clips / "a\nbroken, one.mp4").write_bytes(b"no video")
    flags = ("--predict", clips, "--device", "cpu", "--out")
    code, out, err = command(evaluate_main, run, *flags, tmp_path / "a.json")
    assert code == 0, err
    found = json.loads((tmp_path / "a.json").read_text())
    names = ["a\nbroken, one.mp4", "more/01.webm", "more/02.avi", "more/06"]
    assert [one["video"] for one in found] == names
    assert "not a video file" in found[0]["error"] and out.count("left") == 3
    assert "\na?broken, one.mp4: " in "\n" + out
    for one in found[1:]:
        assert {*one["answers"]} == {"left", "right"}
        assert sum(one["answers"].values()) == pytest.approx(1, abs=1e-5)
    single = ("--predict", clips / "more/06", "--device", "cpu", "--out", tmp_path / "b.json")
    assert command(evaluate_main, run, *single)[0] == 0
    (one,) = json.loads((tmp_path / "b.json").read_text())
    assert one["answers"] == found[3]["answers"]
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "x.mp4").write_bytes(b"no video")
    code, _, err = command(evaluate_main, run, "--predict", tmp_path / "bad", "--device", "cpu")
    assert code == 2 and "/bad: no video can be used; " in err
