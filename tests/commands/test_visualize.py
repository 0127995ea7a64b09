"""Pictures of a run: whole files, and one page that loads nothing else."""

from __future__ import annotations

import html
import re
import shutil
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ivcl_fast import IVCLClassifier, SlotAutoencoder
from ivcl_fast.analysis.finished_runs import FinishedRun, Models
from ivcl_fast.command import run_command
from ivcl_fast.data.synthetic.acre.write import SyntheticAcre, write_acre
from ivcl_fast.data.synthetic.cater.write import SyntheticCater, write_cater
from ivcl_fast.train import main as train_main
from ivcl_fast.visualize import main
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
def visualize(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command; returns its exit status and what it said."""

    def call(*arguments: Any) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["visualize", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            run_command(main)
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out + err

    return call


@pytest.fixture(scope="module")
def cater(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cater(tmp_path_factory.mktemp("data") / "cater", SyntheticCater(train=8, val=6), 1)


@pytest.fixture(scope="module")
def run(cater: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("runs"), "--data", f"cater:{cater}", *FRAME_FLAGS)


class Parsed:
    """The text of a page and the pictures in it."""

    def __init__(self, page: Path) -> None:
        self.html = page.read_text()
        self.text = html.unescape(self.html)
        self.images = re.findall('<img [^>]*src="([^"]*)"', self.html)

    def needs_nothing_else(self) -> bool:
        """Nothing is loaded: pictures are inside, and no tag or style names a file."""
        rest = re.sub(' src="[^"]*"', "", self.html)
        loads = re.search(r"<(script|link|iframe|a|base|object)\b|href|srcset|url\(|@import", rest)
        return loads is None and all(image.startswith("data:image/") for image in self.images)


def check_animation(folder: Path, frames: int) -> None:
    """The GIF shows so many pictures, each different from the one before."""
    with Image.open(folder / "slots.gif") as gif:
        assert gif.n_frames == frames and gif.info["duration"] == 500 and gif.info["loop"] == 0
        shown = []
        for i in range(frames):
            gif.seek(i)
            shown.append(np.asarray(gif.convert("RGB")))
    assert all((a != b).any() for a, b in pairwise(shown))


def models_of(run: Path) -> Models:
    return FinishedRun.open(run, "cpu").models()


def test_cater_from_run_to_page(run: Path, visualize: Any) -> None:
    status, said = visualize(run, "--clips", 1)
    assert status == 0 and "overlap" in said and "untrained" in said
    out = run / "visualize"
    folders = [path for path in out.iterdir() if path.is_dir()]
    assert len(folders) == 1
    names = ["attention.png", "reconstruction.png", "slots.gif"]
    for folder in folders:
        assert sorted(path.name for path in folder.iterdir()) == names
        for picture in folder.glob("*.png"):
            with Image.open(picture) as image:
                image.load()
                assert min(image.size) > 300
        check_animation(folder, frames=4)
    page = Parsed(out / "index.html")
    assert page.needs_nothing_else() and len(page.images) == 3
    for words in ("last block of the image", "Snitch visible", "Answer: cell", "Truth: cell",
                  "Have the slots collapsed?", "pretrained and finetuned", "norm_pix"):  # fmt: skip
        assert words in page.text, words
    for folder in folders:
        assert folder.name in page.text


def test_slots_that_compete(cater: Path, tmp_path: Path, visualize: Any) -> None:
    """They have a part of the frame each, and neither heads nor a rollout."""
    flags = "--objective", "slot_attention", "--freeze-encoder", *FRAME_FLAGS
    run = train(tmp_path, "--data", f"cater:{cater}", *flags)
    assert [type(model) for model in models_of(run).values()] == [SlotAutoencoder, IVCLClassifier]
    assert visualize(run, "--clips", 1)[0] == 0
    assert "last round of slot attention" in (run / "visualize/index.html").read_text()
    assert len([*(run / "visualize").glob("*/reconstruction.png")]) == 1


def test_one_clip_by_name_one_file_and_a_checkpoint(
    run: Path, cater: Path, tmp_path: Path, visualize: Any
) -> None:
    status, _ = visualize(run, "--clip", "CATER_new_000002", "--out", tmp_path / "named")
    assert status == 0
    assert sorted(p.name for p in (tmp_path / "named").iterdir()) == [
        "CATER_new_000002", "index.html", "report.html",
    ]  # fmt: skip

    moved = tmp_path / "moved" / "run"  # a file needs neither the data nor the place of the run
    shutil.copytree(run, moved)
    settings = (moved / "config.json").read_text()
    (moved / "config.json").write_text(settings.replace(str(cater), "/nowhere"))
    video = shutil.copy(cater / "videos" / "CATER_new_000001.avi", tmp_path / "mine <1>.avi")
    step = moved / "finetune" / "checkpoints" / "step-00000002"  # an unfinished run has it
    step.mkdir(parents=True)
    (moved / "finetune" / "model.safetensors").rename(step / "model.safetensors")
    shutil.rmtree(moved / "pretrain")
    status, said = visualize(moved, "--clips", 1, "--checkpoint", step)
    assert status == 2 and said.startswith("error: --data: ") and "/nowhere" in said
    status, said = visualize(moved, "--video", video)
    assert status == 2 and "holds no finished model" in said and said.count("\n") == 1
    status, said = visualize(moved, "--video", video, "--checkpoint", step)
    assert status == 0, said
    page = Parsed(moved / "visualize" / "index.html")
    assert "mine <1>" in page.text and "Answer: cell" in page.text
    assert "Truth" not in page.text and "collapsed" not in page.text
    assert len(page.images) == 2  # no reconstruction: nothing pretrained is left
    check_animation(moved / "visualize" / "mine <1>", frames=4)


def test_acre(tmp_path: Path, visualize: Any) -> None:
    data = write_acre(tmp_path / "acre", SyntheticAcre("iid", train=2, val=1, test=1), 1)
    run = train(tmp_path, "--data", f"acre:{data}")
    status, said = visualize(run, "--clips", 1)
    assert status == 0, said
    (folder,) = (path for path in (run / "visualize").iterdir() if path.is_dir())
    names = ["attention.png", "reconstruction.png", "slots.gif"]
    assert sorted(path.name for path in folder.iterdir()) == names
    check_animation(folder, frames=7)
    page = Parsed(run / "visualize" / "index.html")
    assert page.needs_nothing_else() and len(page.images) == 3
    assert "Answer: " in page.text and "Truth: " in page.text and "snitch" not in page.text


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
    page = Parsed(other / "visualize" / "index.html")
    assert "CATER_new_000013" in page.text and "CATER_new_000008" not in page.text
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
        (["{run}", "--clip", "nobody"], "--clip: expected "),
        (["{run}", "--video", "{tmp}/none.avi"], "--video {tmp}/none.avi: "),
        (["{run}", "--video", "{run}/config.json"], "not a video file"),
        (["{run}", "--video", "a.mp4", "--clip", "x"], "--clip: "),
        (["{run}", "--checkpoint", "{tmp}"], "{tmp}: "),
        (["{run}", "--checkpoint", "{tmp}/other.safetensors"], "in a model of this config"),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: Sequence[str], message: str, run: Path, tmp_path: Path, visualize: Any
) -> None:
    save_file({"encoder.slot_tokens": torch.zeros(1, 9, 9)}, tmp_path / "other.safetensors")
    status, said = visualize(*(a.format(run=run, tmp=tmp_path) for a in arguments))
    assert status == 2 and message.format(tmp=tmp_path) in said
    assert said.startswith("error: ") and said.count("\n") == 1


def test_the_folder_of_a_model_shows_that_model_alone(
    run: Path, tmp_path: Path, visualize: Any
) -> None:
    status, said = visualize(run / "pretrain", "--clips", 1, "--out", tmp_path)
    assert status == 0 and "pretrained" in said and "finetuned" not in said
    page = Parsed(tmp_path / "index.html")
    assert len(page.images) == 3 and "Answer" not in page.text
    shutil.copytree(run, tmp_path / "run")
    shutil.move(tmp_path / "run" / "finetune", tmp_path / "run" / "scratch")
    status, said = visualize(tmp_path / "run" / "scratch")
    assert status == 2 and "/run/scratch: expected " in said and said.count("\n") == 1
