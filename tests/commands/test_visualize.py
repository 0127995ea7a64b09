"""The page of chosen clips, and their pictures and masks as files."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ivcl_fast import IVCLClassifier, SlotAutoencoder
from ivcl_fast.analysis.finished_runs import FinishedRun, Models
from ivcl_fast.data.synthetic.cater.write import SyntheticCater
from ivcl_fast.data.synthetic.writer import write_dataset
from ivcl_fast.report.collapse import measure_collapse
from ivcl_fast.train import main as train_main
from ivcl_fast.visualize import main
from tests.report.test_page import data_of
from tests.support.small_models import FRAME_FLAGS, RUN_FLAGS

QUICK = [*RUN_FLAGS, "--depth", "2", "--quick", "--no-pictures", "--no-compare-memoryless"]


def train(out: Path, *arguments: Any) -> Path:
    """A run called ``run`` in the folder ``out``."""
    with pytest.MonkeyPatch.context() as patch:
        flags = [*QUICK, "--out", out, "--name", "run", *arguments]
        patch.setattr(sys, "argv", ["train", *map(str, flags)])
        train_main()
    return out / "run"


@pytest.fixture
def visualize(command: Any) -> Any:
    """Runs the command; returns its exit status and its output."""

    def call(*arguments: Any) -> tuple[int, str]:
        status, out, err = command(main, *arguments)
        return status, out + err

    return call


@pytest.fixture(scope="module")
def cater(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(
        tmp_path_factory.mktemp("data") / "cater", SyntheticCater(train=8, val=6), 1
    )


@pytest.fixture(scope="module")
def run(cater: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("runs"), "--data", f"cater:{cater}", *FRAME_FLAGS)


def models_of(run: Path) -> Models:
    return FinishedRun.open(run, "cpu").models()


def test_cater_from_run_to_page(run: Path, visualize: Any) -> None:
    status, said = visualize(run, "--clips", 1, "--format", "gif")
    assert status == 0
    animation, page = sorted((run / "visualize").iterdir())
    assert said.endswith(f"open: {page}\n") and "Have the slots collapsed?" in page.read_text()
    (clip,) = data_of(page)["clips"]
    assert animation.name == f"{clip['name']}.gif" and f"{clip['name']}: cell" in said
    with Image.open(animation) as gif:
        assert gif.n_frames == len(clip["titles"]) == 4
    assert clip["answer"].startswith("cell ") and clip["truth"].startswith("cell ")
    assert "last block of the image encoder" in clip["layers"][1]["note"]


def test_two_runs_side_by_side(run: Path, tmp_path: Path, visualize: Any) -> None:
    other = shutil.copytree(run, tmp_path / "other")
    status, said = visualize(run, other, "--clips", 1, "--out", tmp_path)
    assert status == 0, said
    page = tmp_path / "report.html"
    (clip,) = data_of(page)["clips"]
    assert clip["other"]["name"] == clip["name"]
    assert clip["other"]["probabilities"] == clip["probabilities"]
    assert "Scores of the finetuned models" in page.read_text()
    lines = data_of(page)["curves"][0]["lines"]
    assert {"run pretrain", "other pretrain"} <= {*lines}


def test_slots_that_compete_and_their_masks(
    cater: Path, tmp_path: Path, visualize: Any, capsys: Any
) -> None:
    flags = "--objective", "slot_attention", "--freeze-encoder", *FRAME_FLAGS
    run = train(tmp_path, "--data", f"cater:{cater}", *flags)
    warning = "The slots have collapsed (pretrained: overlap "
    assert warning in capsys.readouterr().out and warning in (run / "report.md").read_text()
    assert [type(model) for model in models_of(run).values()] == [SlotAutoencoder, IVCLClassifier]
    status, said = visualize(run, "--clips", 1, "--masks", tmp_path / "masks")
    assert status == 0 and warning in said, said
    assert warning in (run / "visualize" / "report.html").read_text()
    (clip,) = data_of(run / "visualize" / "report.html")["clips"]
    assert "last round of slot attention" in clip["layers"][1]["note"]
    assert "segments" in [layer["name"] for layer in clip["layers"]]
    assert len([*(tmp_path / "masks" / clip["name"]).iterdir()]) == 4
    assert (tmp_path / "masks" / f"{clip['name']}.json").is_file()

    opened = FinishedRun.open(run, "cpu")
    models = opened.models()
    with torch.no_grad():  # each patch goes to one slot
        models["pretrained"].encoder.slot_attention.query[1].weight.mul_(1000)
    section, warning = measure_collapse(opened, {"pretrained": models["pretrained"]})
    assert not warning and [row[0] for row in section.table.rows] == ["untrained", "pretrained"]


def test_one_clip_by_name_and_one_file(
    run: Path, cater: Path, tmp_path: Path, visualize: Any
) -> None:
    named = tmp_path / "named"
    status, said = visualize(run, "--clip", "CATER_new_000002", "--out", named)
    assert status == 0, said
    (clip,) = data_of(named / "report.html")["clips"]
    assert clip["name"] == "CATER_new_000002"

    moved = tmp_path / "moved" / "run"  # a file needs neither the data nor the place of the run
    shutil.copytree(run, moved)
    settings = (moved / "config.json").read_text()
    (moved / "config.json").write_text(settings.replace(str(cater), "/nowhere"))
    video = shutil.copy(cater / "videos" / "CATER_new_000001.avi", tmp_path / "mine <1>.avi")
    shutil.rmtree(moved / "pretrain")
    status, said = visualize(moved, "--clips", 1)
    assert status == 2 and said.startswith("error: --data: ") and "/nowhere" in said
    status, said = visualize(moved, "--video", video)
    assert status == 0, said
    page = moved / "visualize" / "report.html"
    (clip,) = data_of(page)["clips"]
    assert clip["name"] == "mine <1>" and clip["answer"].startswith("cell")
    assert clip["truth"] == ""
    assert len(clip["layers"]) == 3  # no reconstruction: nothing pretrained is left


def test_a_broken_video_is_named_and_left_out(
    run: Path, cater: Path, tmp_path: Path, visualize: Any
) -> None:
    copy = tmp_path / "cater"
    shutil.copytree(cater, copy)
    settings = (run / "config.json").read_text().replace(str(cater), str(copy))
    other = tmp_path / "run"
    shutil.copytree(run, other)
    (other / "config.json").write_text(settings)
    for broken in sorted((copy / "videos").iterdir())[8:13]:  # of six to measure on, one is left
        broken.write_bytes(broken.read_bytes()[:3000])
    status, said = visualize(other, "--clips", 2)
    assert status == 0 and "CATER_new_000008 left out: " in said
    names = [clip["name"] for clip in data_of(other / "visualize" / "report.html")["clips"]]
    assert "CATER_new_000013" in names and "CATER_new_000008" not in names
    status, said = visualize(other, "--clip", "CATER_new_000008")
    assert status == 2 and said.startswith("error: --clip CATER_new_000008: ")
    (copy / "videos" / "CATER_new_000013.avi").write_bytes(b"RIFF")
    status, said = visualize(other)
    assert status == 2 and "no clip of the evaluation split can be decoded\n" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}"], "{tmp}: "),
        (["{run}", "--clips", "0"], "--clips: "),
        (["{run}", "{run}", "{run}"], "RUN: expected one or two runs, got 3"),
        (["{run}", "--clips", "1", "--masks", "{tmp}"], "--masks: expected a model pretrained"),
        (["{run}", "--clip", "nobody"], "--clip: expected "),
        (["{run}", "--video", "a.mp4", "--clip", "x"], "--clip: "),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: Sequence[str], message: str, run: Path, tmp_path: Path, visualize: Any
) -> None:
    status, said = visualize(*(a.format(run=run, tmp=tmp_path) for a in arguments))
    assert status == 2 and message.format(tmp=tmp_path) in said
    assert said.startswith("error: ") and said.count("\n") == 1


def test_the_folder_of_a_model_shows_that_model_alone(
    run: Path, tmp_path: Path, visualize: Any
) -> None:
    status, said = visualize(run / "pretrain", "--clips", 1, "--out", tmp_path)
    assert status == 0, said
    (clip,) = data_of(tmp_path / "report.html")["clips"]
    assert clip["answer"] is None and clip["layers"][-1]["name"] == "error"
    shutil.copytree(run, tmp_path / "run")
    shutil.move(tmp_path / "run" / "finetune", tmp_path / "run" / "scratch")
    status, said = visualize(tmp_path / "run" / "scratch")
    assert status == 2 and "/run/scratch: expected " in said and said.count("\n") == 1
