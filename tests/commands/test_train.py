"""The main job as a user runs it: the quick run, stops and continuations, and mistakes."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ivcl_fast import IVCL, IVCLClassifier
from ivcl_fast.data.synthetic.cater.write import SyntheticCater
from ivcl_fast.data.synthetic.writer import write_dataset
from ivcl_fast.files import LOCK
from ivcl_fast.train import main as train_main
from ivcl_fast.training.arguments import parse
from ivcl_fast.training.run_folder import opened_folder
from ivcl_fast.training.settings import load_settings
from ivcl_fast.visualize import main as visualize_main
from tests.support.short_run import FLAGS
from tests.support.small_models import FRAME_FLAGS, RUN_FLAGS

SMALL = [
    *RUN_FLAGS, *FRAME_FLAGS, "--pretrain-clips", "160", "--finetune-clips", "40",
    "--save-every", "3",
]  # fmt: skip
QUICKLY = ["--no-pictures", "--no-compare-memoryless"]
"""What a run does after its stages is left out."""


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "ivcl_fast.train", *arguments]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command, cwd=folder, **pipes)


def finish(process: subprocess.Popen, status: int = 0) -> str:
    out, err = process.communicate()
    assert process.returncode == status, out[-2000:] + err[-4000:]
    return out + err


@pytest.fixture(scope="module")
def cater(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("cater"), SyntheticCater(train=12, val=6), 1)


def test_quick_run_does_everything(short_run, tmp_path, command, monkeypatch):
    assert "chance" in short_run.said and "2.8 %" in short_run.said
    assert "last frame only" in short_run.said
    home = shutil.copytree(short_run.home, tmp_path / "home")
    run = home / "runs" / "synthetic-localize-tiny-quick"
    page = (run / "report.html").read_text()
    assert all(f'"{name}"' in page for name in ("slot 2", "masked input", "reconstruction"))
    report = (run / "report.md").read_text()
    assert "hidden" in report and "report.html" in report and "--quick" in report
    assert "192 last frames and 64 whole clips of finetuning." in report
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {r["stage"] for r in records} == {"pretrain", "finetune", "last-frame"}
    assert any("val_top1" in r for r in records)
    assert list((run / "tensorboard").iterdir())

    monkeypatch.chdir(home)
    code, out, _ = command(train_main, *FLAGS, *QUICKLY)  # it was finished before
    assert code == 0 and "report" in out


def weights(run: Path) -> dict[str, bytes]:
    return {
        f"{stage}/{name}": tensor.numpy().tobytes()
        for stage in ("pretrain", "finetune")
        for name, tensor in load_file(run / stage / "model.safetensors").items()
    }


def test_a_model_knows_its_training(uninterrupted):
    classifier = IVCLClassifier.from_pretrained(uninterrupted)
    record = classifier.training_record
    assert len(classifier.class_names) == 36
    assert record["data"] == "cater" and record["task"] == "localize"
    assert record["clips seen"] == 40 and record["initial weights"] == "a pretrained model"
    assert 0 <= record["scores on val"]["top1"] <= 1
    record = IVCL.from_pretrained(uninterrupted).training_record
    assert record["clips seen"] == 160 and record["initial weights"] == "random"


def losses(run: Path) -> list[tuple]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(r["stage"], r["step"], r.get("loss"), r.get("val_top1")) for r in records]


@pytest.fixture(scope="module")
def uninterrupted(cater, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "runs"
    flags = ["--data", f"cater:{cater}", *SMALL, "--out", str(folder), "--name", "run"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train", *flags])
        train_main()
    return folder / "run"


def wait_for(path: Path, pattern: str, process: subprocess.Popen) -> None:
    while not list(path.glob(pattern)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_stopped_or_killed_run_continues_to_the_same_bits(
    cater, uninterrupted, tmp_path, command, monkeypatch, signum, status
):
    first = start(tmp_path, "--data", f"cater:{cater}", "--name", "run", *SMALL)
    wait_for(tmp_path, "runs/run/pretrain/checkpoints/step-*3", first)
    first.send_signal(signum)
    said = finish(first, status)
    assert ("--resume runs/run continues" in said) == (status > 0)
    assert "Traceback" not in said
    monkeypatch.chdir(tmp_path)
    assert command(train_main, "--resume", "runs/run", *QUICKLY)[0] == 0
    assert weights(tmp_path / "runs" / "run") == weights(uninterrupted)


@pytest.mark.parametrize(
    "arguments",
    [
        "--preset huge", "--data movies", "--task count",
        "--mask-ratio 1.5", "--image-size 60", "--mlp-ratio inf", "--num-query-frames 17",
        "--batch-size 0", "--grad-accum-steps 3", "--lr -1", "--lr inf", "--finetune-lr nan",
        "--clip-norm 0", "--weight-decay -1", "--warmup-steps -5", "--val-videos 0", "--seed -1",
        f"--seed {2**64}", "--num-frames 16 --data synthetic:acre-iid", "--device cuda:99",
        "--label-fraction 2", "--name ../other", "--mirror --frame-labels", "--eval-clips 0",
        "--frame-stride 2", "--frame-stride -1", "--clip-seconds 2", "--clip-seconds nan",
        "--clip-seconds 1 --frame-stride 1", "--crop center",
    ],
)  # fmt: skip
def test_a_wrong_value_is_one_line_that_names_the_flag(arguments, tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = command(train_main, *arguments.split())
    assert code == 2 and err.startswith(f"error: {arguments.split()[0]}: ") and err.count("\n") == 1
    assert not list(tmp_path.iterdir()), "something was left behind"


@pytest.mark.parametrize(
    "arguments", ["--no-such-flag", "--init nowhere", "--resume nowhere", "--data cater:nowhere"]
)
def test_what_is_missing_is_named_before_any_work(arguments, tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = command(train_main, *arguments.split())
    assert code == 2 and arguments.split()[-1].removeprefix("cater:") in err
    assert "Traceback" not in err + out
    assert not list(tmp_path.iterdir()), "something was left behind"


def test_settings_that_do_not_fit_are_refused_before_pretraining(
    cater, uninterrupted, command, tmp_path
):
    """Too few labels for a batch, and other settings than those of the run in the folder."""
    flags = ["--data", f"cater:{cater}", *SMALL, "--name", "run", "--out"]
    code, _, err = command(train_main, *flags, tmp_path, "--label-fraction", "0.0001")
    assert code == 2 and err.startswith("error: --batch-size: ") and not list(tmp_path.iterdir())
    code, _, err = command(train_main, *flags, uninterrupted.parent, "--lr", "0.5")
    assert code == 2 and "(lr)" in err and "--overwrite" in err


def test_overwriting_deletes_the_run_and_nothing_else(cater, uninterrupted, command, tmp_path):
    run = shutil.copytree(uninterrupted, tmp_path / "run")
    flags = ["--data", f"cater:{cater}", *SMALL, "--out", tmp_path, "--name", "run"]
    assert command(visualize_main, run, "--clips", "1")[0] == 0
    notes = run / "notes.md"
    notes.write_text("mine")
    settings = parse([*map(str, flags), "--lr", "0.5", "--overwrite"])
    with opened_folder(settings):
        assert {path.name for path in run.iterdir()} == {"config.json", LOCK, "notes.md"}
        assert load_settings(run).optim.lr == 0.5 and notes.read_text() == "mine"


def test_a_run_does_not_overwrite_the_weights_that_it_starts_from(
    cater, uninterrupted, command, tmp_path
):
    run = shutil.copytree(uninterrupted, tmp_path / "run")
    flags = ["--data", f"cater:{cater}", *SMALL, "--out", tmp_path, "--name", "run", "--overwrite"]
    flags += ["--stage", "finetune", "--init", run / "pretrain" / "model.safetensors"]
    code, _, err = command(train_main, *flags)
    assert code == 2 and err.startswith("error: --overwrite: ") and err.count("\n") == 1
    assert weights(run) == weights(uninterrupted)


def test_folders_that_are_no_run_are_not_overwritten(cater, command, tmp_path):
    flags = ["--data", f"cater:{cater}", *SMALL, "--out", tmp_path, "--name", "other"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "report.md").write_text("mine")
    for content, named in (("", "report.md"), ('{"a": 1}', "json: "), ("text", "json: ")):
        if content:
            (tmp_path / "other" / "config.json").write_text(content)
        code, _, err = command(train_main, *flags, "--overwrite")
        assert code == 2 and named in err and err.count("\n") == 1
    assert (tmp_path / "other" / "report.md").read_text() == "mine"
