"""Studies: their runs, how they continue when stopped, and what their pages show."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from ivcl_fast.data.synthetic.cater.write import SyntheticCater
from ivcl_fast.data.synthetic.writer import write_dataset
from ivcl_fast.errors import UserError
from ivcl_fast.studies import runner
from ivcl_fast.studies.definitions import STUDIES, Study, Variant
from ivcl_fast.sweep import main
from ivcl_fast.train import main as train_main
from ivcl_fast.training.settings import load_settings
from tests.report.test_page import data_of
from tests.support.small_models import RUN_FLAGS

SMALL = (*RUN_FLAGS, "--batch-size", "2", "--pretrain-clips", "4", "--finetune-clips", "4")
COMPARED = Study(
    "Does it help?",
    "pretraining",
    (Variant("IV-CL", finetune="--compare-memoryless"), Variant("from scratch", None)),
)


def run_study(name, flags, out, seeds=1, parallel=None, **options) -> Path:
    config = runner.SweepConfig((name,), seeds=seeds, parallel=parallel, out=out, **options)
    return runner.run_study(config, flags)


SLOTS = Study("How many?", "slots per frame", (Variant("1", model="--num-slots 1"), Variant("2")))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("data") / "cater"
    return f"cater:{write_dataset(folder, SyntheticCater(train=8, val=6), 1)}"


class TrainedHere:
    """Stands for a process that trains: trains in this one, which need not import anything."""

    returncode = 0

    def __init__(self, command: list[str], **options: Any) -> None:
        (_, _, module, *flags) = command
        assert module == "ivcl_fast.train"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["train", *flags])
            train_main()

    def poll(self) -> int:
        return self.returncode


def test_a_study_from_data_to_table_and_again(data, tmp_path, monkeypatch, capfd):
    """The last run is one of a separate process."""
    monkeypatch.setitem(STUDIES, "small", COMPARED)
    flags = ("--data", data, *SMALL)
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", TrainedHere)
        folder = run_study("small", flags, tmp_path)
    page = (folder / "study.md").read_text()
    (command,) = re.findall(r"^`python -m ivcl_fast.sweep small (.*) --seeds 1`", page, re.M)
    runner.check_flags("small", COMPARED, tuple(shlex.split(command)))
    title = f"localize on {data}"
    values = json.loads((folder / "results.json").read_text())["values"][title]
    assert next(iter(values)) == "IV-CL" and values["from scratch"]["all"].keys() >= {"top1", "l1"}
    assert f"## {title}" in page and "from “IV-CL” on the same clips" in page
    assert "last frame only" in page
    html = folder / "report.html"
    assert data_of(html)["curves"][0]["lines"].keys() == {"IV-CL", "from scratch"}
    assert "Does it help?" in html.read_text() and "<h2>Training</h2>" in html.read_text()
    printed = capfd.readouterr().out
    assert re.search(r"^run 1/3: done in \d+ s, about \d+ s left, ", printed, re.M)

    run_study("small", flags, tmp_path)
    assert "run 1/" not in capfd.readouterr().out, "all runs are done"
    (folder / "from-scratch" / "seed-0" / "scores.json").unlink()
    run_study("small", flags, tmp_path)
    printed = capfd.readouterr().out
    assert re.search(r"^run 3/3: done in \d+ s, \S*from-scratch/seed-0$", printed, re.M)
    assert "3 runs done; this took" in printed
    assert "report: " in printed, "a single run shows what it does"
    assert json.loads((folder / "results.json").read_text())["values"][title] == values

    with pytest.raises(UserError, match=r"^--out: .*pretrained .*\(finetune_lr, lr\); choose"):
        run_study("small", (*flags, "--lr", "0.5", "--finetune-lr", "0.5"), tmp_path)
    assert (folder / "study.md").read_text() == page


def test_the_values_of_any_flag_are_compared(data, tmp_path, command, monkeypatch):
    """Without a name. A quick study takes one seed, and finetunings share a pretraining."""
    monkeypatch.setattr(subprocess, "Popen", TrainedHere)
    flags = ["--vary", "label-fraction=0.5,1.0", "--quick", "--data", data, *SMALL]
    code, printed, _ = command(main, *flags, "--out", tmp_path)
    folder = tmp_path / "vary-label-fraction-quick"
    assert code == 0 and "3 runs done" in printed
    page = (folder / "study.md").read_text()
    assert "| --label-fraction | clips |" in page
    assert "ivcl_fast.sweep --vary=label-fraction=0.5,1.0 --quick" in page and "--seeds 1`" in page
    fractions = [load_settings(run).stages.label_fraction for run in folder.glob("*/seed-*")]
    assert sorted(fractions) == [0.5, 1.0]


STAND_IN = """#!/bin/sh
# Stands for Python that trains: with one slot it fails when another has started, which never ends.
case "$*" in
  */slots/1\\ *) until [ -e "$0.started" ]; do sleep 0.05; done; echo no luck; exit 2 ;;
esac
trap 'echo stopped; exit 143' TERM
echo started
echo "$*" >>"$0.started"
while :; do sleep 0.05; done
"""


@pytest.fixture
def started(tmp_path, monkeypatch) -> Path:
    """The file in which the stand-ins for runs note that they have started."""
    stand_in = tmp_path / "python"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stand_in))
    return tmp_path / "python.started"


def logs(folder: Path) -> dict[str, str]:
    """What pretraining printed, by variant."""
    return {
        file.parent.parent.name: file.read_text() for file in folder.glob("*/pretrained/log.txt")
    }


def test_a_failed_run_stops_all(data, tmp_path, started, monkeypatch):
    monkeypatch.setitem(STUDIES, "slots", SLOTS)
    failed = tmp_path / "slots" / "1" / "pretrained"
    with pytest.raises(UserError, match=f"{failed}: exited with status 2; see log.txt"):
        run_study("slots", ("--data", data, *SMALL), tmp_path, parallel=2)
    assert logs(tmp_path / "slots") == {"1": "no luck\n", "2": "started\nstopped\n"}


@pytest.mark.parametrize(("flags", "parallel"), [((), None), (("--device", "cpu"), 2)])
def test_gpus_are_shared_unless_a_device_is_named(
    flags, parallel, data, tmp_path, started, monkeypatch
):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setitem(STUDIES, "slots", SLOTS)
    with pytest.raises(UserError, match="exited with status 2"):
        run_study("slots", ("--data", data, *SMALL, *flags), tmp_path, parallel=parallel)
    (other,) = started.read_text().splitlines()
    assert other.endswith(" --device cuda:1") == (not flags)


def test_a_scheduler_stops_runs_at_once(data, tmp_path, started, command):
    ended = threading.Event()

    def stop() -> None:
        while not started.exists() or started.read_text().count("\n") < 2:
            if ended.wait(0.02):
                return
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    flags = ["--data", data, *SMALL, "--out", tmp_path]
    code, _, error = command(main, "supervision", "--parallel", "2", *flags)
    ended.set()
    thread.join()
    assert code == 143 and "stopped by SIGTERM; the same command continues" in error
    assert [*logs(tmp_path / "supervision").values()] == ["started\nstopped\n"] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "STUDY: expected the name of one study, or --vary FLAG=A,B,..."),
        (["--vary", "depht=1,2"], "--vary: expected a flag of ivcl_fast.train and its values"),
        (["--vary", "seed=1,2"], "--vary: expected no flag that studies set"),
        (["nothing"], "STUDY: expected one of pretraining, supervision"),
        (["causes", "--seeds", "0"], "--seeds: expected at least 1, got 0"),
        (["causes", "--pretrainings", "4"], "--pretrainings: expected at most --seeds (3), got 4"),
        (["pretraining", "--objective", "mae"], "--objective: the study pretraining sets this"),
        (["supervision", "--data", "acre:x"], "--objective classification: "),
    ],
)
def test_mistakes_are_reported_in_one_line(arguments, message, tmp_path, command):
    code, _, error = command(main, *arguments, "--out", tmp_path / "none")
    assert code == 2 and message in error and error.count("\n") == 1
    assert not (tmp_path / "none").exists()
