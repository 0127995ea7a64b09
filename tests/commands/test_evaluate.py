"""Measuring a run again: where its data are, which split, what is kept; answers for files."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from ivcl_fast import evaluate, probes, visualize
from ivcl_fast.data.datamodule import DataModule
from ivcl_fast.data.formats.cater_labels import hidden_at_end
from ivcl_fast.train import main as train_main
from tests.support.small_models import FRAME_FLAGS, RUN_FLAGS

SMALL = [
    *RUN_FLAGS, "--no-pictures", "--no-compare-memoryless", "--decoder", "pyav", "--name", "run",
]  # fmt: skip
CATER, ACRE = "synthetic-cater-embedded-static-12-6", "synthetic-acre-iid-embedded-4-2-2"


def train(folder: Path, *arguments: str) -> Path:
    """A run called ``run``, of synthetic data where the command keeps them by default."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["train", *SMALL, *arguments])
        train_main()
    return folder / "runs" / "run"


@pytest.fixture(scope="module")
def cater(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's folder; ``data`` is beside ``runs``."""
    sizes = "--train-videos", "12", "--val-videos", "6", "--keep-videos"
    return train(tmp_path_factory.mktemp("cater"), *FRAME_FLAGS, *sizes)


@pytest.fixture(scope="module")
def acre(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The run's folder, and the splits that were measured on, one after the other."""
    measured: list[str] = []
    loader = DataModule.loader

    def noted(self: DataModule, split: str, **options: Any) -> Any:
        if not options["training"]:
            measured.append(split)
        return loader(self, split, **options)

    sizes = ["--data=synthetic:acre-iid", "--train-videos=4", "--val-videos=2", "--keep-videos"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DataModule, "loader", noted)
        return train(tmp_path_factory.mktemp("acre"), *sizes), measured


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Any) -> Any:
    """Runs a command far from where the run was made; its exit status and its output."""
    away = tmp_path / "away"
    away.mkdir()
    monkeypatch.chdir(away)

    def call(module: Any, *arguments: Any) -> tuple[int, str]:
        status, out, err = command(module.main, *arguments)
        assert not list(away.iterdir()), "a command left a file"
        return status, out + err

    return call


def refused(said: tuple[int, str], *words: str) -> bool:
    """Whether a command ended with one line that has these words."""
    status, text = said
    assert status == 2 and text.startswith("error: ") and text.count("\n") == 1, text
    return all(word in text for word in words)


def copied(run: Path, folder: Path, data: str) -> Path:
    """A copy of the run, with other data in its settings."""
    shutil.copytree(run, folder)
    settings = json.loads((folder / "config.json").read_text())
    settings["data"]["source"] = data
    (folder / "config.json").write_text(json.dumps(settings))
    return folder


# --- Where the data are ---------------------------------------------------------------------------


@pytest.mark.parametrize("module", [evaluate, visualize, probes])
def test_reading_a_run_generates_no_data(module: Any, cater: Path, command: Any) -> None:
    assert refused(command(module, cater), f"away/data/{CATER}", "--data: ")


def test_data_that_lie_elsewhere_are_named(cater: Path, tmp_path: Path, command: Any) -> None:
    data = f"cater:{cater.parent.parent / 'data' / CATER}"
    scores = command(evaluate, cater, "--data", data)
    assert scores[0] == 0 and "hidden" in scores[1]
    real = copied(cater, tmp_path / "run", "cater:mycater")
    assert refused(command(evaluate, real), "/away/mycater", "--data: ")
    assert command(evaluate, real, "--data", data) == scores


@pytest.mark.parametrize("data", ["acre:x", "synthetic:acre-iid", "movies"])
def test_data_of_another_kind_are_refused(data: str, cater: Path, command: Any) -> None:
    assert refused(command(evaluate, cater, "--data", data), "--data: ", repr(data))


# --- What is measured and kept --------------------------------------------------------------------


def test_scores_and_every_clips_logits_are_kept(cater: Path, tmp_path: Path, command: Any) -> None:
    data, out = cater.parent.parent / "data" / CATER, tmp_path / "scores.json"
    status, said = command(evaluate, cater, "--data", f"cater:{data}", "--out", out)
    kept, report = json.loads(out.read_text()), json.loads((cater / "scores.json").read_text())
    assert status == 0 and (kept["model"], kept["split"]) == ("finetune", "val")
    assert kept["scores"] == report["IV-CL"]
    assert all(f" {title} " in said for title in report), "rows are called as in the report"
    assert len(kept["classes"]) == 36 and len(kept["clips"]) == 6
    correct = 0
    for clip in kept["clips"]:
        scene = json.loads((data / "scenes" / f"{clip['name']}.json").read_text())
        assert clip["group"] == ("hidden" if hidden_at_end(scene) else "visible")
        assert clip["logits"].index(max(clip["logits"])) == clip["answer"]
        correct += clip["answer"] == clip["label"]
    assert correct / 6 == kept["scores"]["all"]["top1"]["value"]
    answers = json.loads((cater / "clips.json").read_text())
    for clip, answer in zip(kept["clips"], answers, strict=True):
        del clip["logits"]
        assert answer.pop("correct")["IV-CL"] == (clip["answer"] == clip["label"])
    assert kept["clips"] == answers


def test_curves_are_not_drawn_on_what_is_reported(
    acre: tuple[Path, list[str]], tmp_path: Path, command: Any
) -> None:
    run, measured = acre
    assert measured and measured[-1] == "test" and set(measured[:-1]) == {"val"}
    data = "--data", f"acre:{run.parent.parent / 'data' / ACRE}"
    for split, clips in ((None, 8), ("test", 8), ("val", 8), ("train", 16)):
        chosen = () if split is None else ("--split", split)
        status, _ = command(evaluate, run, *data, *chosen, "--out", tmp_path / "scores.json")
        kept = json.loads((tmp_path / "scores.json").read_text())
        assert status == 0 and kept["split"] == (split or "test")
        assert len(kept["clips"]) == clips and "group" not in kept["clips"][0]
        assert {clip["name"].split("_")[1] for clip in kept["clips"]} == {split or "test"}
    said = command(evaluate, run, *data, "--split", "dev")
    assert refused(said, "--split: expected one of train, test, val")


def test_a_models_folder_names_the_run_and_the_model(
    cater: Path, tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = "--data", f"cater:{cater.parent.parent / 'data' / CATER}"
    assert command(evaluate, cater / "finetune", *data) == command(evaluate, cater, *data)
    said = command(evaluate, cater / "pretrain", *data)
    assert refused(said, "expected a finished finetune or last-frame model")
    shutil.copytree(cater / "finetune", tmp_path / "model")
    video = cater.parent.parent / "data" / CATER / "videos" / "CATER_new_000012.avi"
    alone = command(evaluate, tmp_path / "model", "--predict", video)
    assert alone[0] == 0 and alone == command(evaluate, cater, "--predict", video)
    status, said = command(evaluate, "ivcl_fast/tiny-localize", "--predict", video)
    assert status == 0 and said.count("cell") == 5


# --- Scenes that are not there --------------------------------------------------------------------


def test_without_scenes_nothing_is_told_apart(
    cater: Path, tmp_path: Path, command: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "ivcl_fast")  # whatever ran before in this process
    whole = cater.parent.parent / "data" / CATER
    data = shutil.copytree(whole, tmp_path / "lacking")
    clip = "CATER_new_000014"
    (data / "scenes" / f"{clip}.json").unlink()
    there, out = ("--data", f"cater:{data}"), tmp_path / "scores.json"

    def tells_once(*call: Any) -> bool:
        caplog.clear()
        return command(*call)[0] == 0 and len(caplog.messages) == 1

    assert tells_once(evaluate, cater, *there, "--out", out)
    assert "1 of 6 clips have no scene" in caplog.text and clip in caplog.text
    kept = json.loads(out.read_text())
    assert list(kept["scores"]) == ["all"] and list(kept["scores"]["all"]) == ["top1", "top5", "l1"]
    assert kept["scores"]["all"] == json.loads((cater / "scores.json").read_text())["IV-CL"]["all"]
    assert all("group" not in one for one in kept["clips"])

    chosen = "--clip", clip, "CATER_new_000015"
    assert tells_once(visualize, cater, *there, *chosen, "--out", tmp_path / "shown")
    page = (tmp_path / "shown" / "report.html").read_text()
    assert page.count('"truth":"cell') == 2 and page.count('"end":null') == 1


# --- One file, or a folder of images --------------------------------------------------------------


def frames_of(video: Path, folder: Path) -> Path:
    """A video's frames as images without a loss, named 1.png to N.png."""
    folder.mkdir()
    with av.open(str(video)) as container:
        for number, frame in enumerate(container.decode(video=0), 1):
            frame.to_image().save(folder / f"{number}.png")
    return folder


def test_a_video_or_its_frames(cater: Path, tmp_path: Path, command: Any) -> None:
    video = cater.parent.parent / "data" / CATER / "videos" / "CATER_new_000012.avi"
    folder = frames_of(video, tmp_path / "frames")
    (folder / "notes.txt").touch()
    answers = [command(evaluate, cater, "--predict", path) for path in (video, folder)]
    assert [status for status, _ in answers] == [0, 0]
    likeliest = [said.split("%", 1)[1].splitlines()[0] for _, said in answers]
    assert likeliest[0] == likeliest[1] and "cell" in likeliest[0]
    shown = command(visualize, cater, "--video", folder, "--out", tmp_path / "shown")
    assert shown[0] == 0 and (tmp_path / "shown" / "report.html").is_file()


def test_seven_panels_are_a_question(
    acre: tuple[Path, list[str]], tmp_path: Path, command: Any
) -> None:
    run, _ = acre
    data, out = run.parent.parent / "data" / ACRE, tmp_path / "scores.json"
    command(evaluate, run, "--data", f"acre:{data}", "--out", out)
    kept = json.loads(out.read_text())
    clip = next(clip for clip in kept["clips"] if clip["name"] == "ACRE_test_000001_08")
    panels = tmp_path / "panels"
    panels.mkdir()
    for panel in (*range(6), 8):
        shutil.copy(data / "images" / f"ACRE_test_000001_{panel:02d}.png", panels)
    status, said = command(evaluate, run, "--predict", panels)
    assert status == 0
    sum_of_all = sum(math.exp(logit) for logit in clip["logits"])
    for line in said.splitlines():
        share, answer = line.split("%")
        logit = clip["logits"][kept["classes"].index(answer.strip())]
        assert float(share) == pytest.approx(100 * math.exp(logit) / sum_of_all, abs=0.06)
    assert command(visualize, run, "--video", panels, "--out", tmp_path / "shown")[0] == 0

    one = next(panels.iterdir())
    said = command(evaluate, run, "--predict", one)
    assert refused(said, f"--predict {one}: ", "expected a folder of 7 images")
    one.unlink()
    said = command(evaluate, run, "--predict", panels)
    assert refused(said, "expected a folder of 7 images", "got 6")


def test_what_is_no_video(cater: Path, tmp_path: Path, command: Any) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "panel.png")
    (tmp_path / "text.avi").write_text("no video")
    (tmp_path / "empty").mkdir()
    for name in ("none.avi", "panel.png", "text.avi", "empty"):
        for module, flag in ((evaluate, "--predict"), (visualize, "--video")):
            assert refused(command(module, cater, flag, tmp_path / name), flag, name)
    said = command(evaluate, cater, "--predict", tmp_path / "none.avi", "--split", "val")
    assert refused(said, "--split: ", "--predict")
    said = command(evaluate, cater, "--predict", tmp_path / "text.avi", "--out", tmp_path / "a.txt")
    assert refused(said, "--out: expected a file that ends in .json")
