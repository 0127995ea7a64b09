"""Studies: their runs, how they continue when stopped, and what their tables show."""

from __future__ import annotations

import gc
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import numpy as np
import pytest

from ivcl_fast import train
from ivcl_fast.data.store.frame_store import FrameStore
from ivcl_fast.data.synthetic.cater.write import SyntheticCater, write_cater
from ivcl_fast.errors import UserError
from ivcl_fast.files import locked
from ivcl_fast.report.study_results import Compared, compare, correct_shares
from ivcl_fast.studies import runner
from ivcl_fast.studies.definitions import STUDIES, flag_name
from ivcl_fast.sweep import main
from ivcl_fast.training.run import Run
from tests.support.processes import children, ended
from tests.support.small_models import RUN_FLAGS

SMALL = (*RUN_FLAGS, "--batch-size", "2", "--pretrain-clips", "4", "--finetune-clips", "4")


def run_study(name, flags, out, seeds=3, parallel=None, train=train.train, **options) -> Path:
    config = runner.SweepConfig(name, seeds, parallel=parallel, out=out, **options)
    return runner.run_study(config, flags, train)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("data") / "cater"
    return f"cater:{write_cater(folder, SyntheticCater(train=20, val=6), 1)}"


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> Path:
    """The folder of a study ``encoder`` with one seed, whose runs were done one after the other."""
    return run_study("encoder", ("--data", data, *SMALL), tmp_path_factory.mktemp("done"), 1, 1)


@pytest.mark.parametrize("name", STUDIES)
def test_every_quick_study_from_data_to_table(name, data, tmp_path_factory, tmp_path, capsys):
    study = STUDIES[name].quick()
    own = study.own_flags  # which a command may not set
    pairs = zip(SMALL[::2], SMALL[1::2], strict=True)
    small = [word for pair in pairs if flag_name(pair[0]) not in own for word in pair]
    flags = ["--quick", *small, "--data-dir", str(tmp_path_factory.getbasetemp() / "made")]
    flags += ["--train-videos", "6", "--val-videos", "4"]
    flags += [] if "data" in own else ["--data", data]
    folder = run_study(name, tuple(flags), tmp_path, seeds=1)
    assert folder == tmp_path / f"{name}-quick"
    page = (folder / "study.md").read_text()
    (command,) = re.findall(r"^`python -m ivcl_fast.sweep (.*?)`", page, re.MULTILINE)
    runner.check_flags(name, study, tuple(shlex.split(command)[1:-2]))  # --seeds is the sweep's own
    tables = {head: body for head, _, body in (
        part.partition("\n") for part in page.split("\n## ")[1:])}  # fmt: skip
    values = json.loads((folder / "results.json").read_text())["values"]
    assert list(values) == list(tables)
    for variant in study.variants:
        title = f"{variant.task or 'localize'} on {variant.data or data}"
        assert f"| {variant.label} | all | " in tables[title]
        metrics = values[title][variant.label]["all"]
        assert metrics and all(len(of_seeds) == 1 for of_seeds in metrics.values())
    for title, body in tables.items():
        assert ("difference from *" in body) == ("actions" not in title)
    assert ("no memory" in page) == (name in ("pretraining", "supervision", "memory", "objects"))
    assert ("no reasoning" in page) == (name == "causes")
    assert (folder / "study.png").stat().st_size > 10_000


def test_a_run_leaves_no_frame_store_to_the_next(data, tmp_path, monkeypatch):
    stores = weakref.WeakSet()

    def placed(store, *args, make=FrameStore.__init__) -> None:
        stores.add(store)
        make(store, *args)

    def alone(config) -> None:
        assert not stores, "of the run before"
        train.train(config)

    monkeypatch.setattr(FrameStore, "__init__", placed)
    gc.disable()  # by itself Python may collect them, sooner or later
    try:
        run_study("encoder", ("--data", data, *SMALL), tmp_path, 1, 1, alone)
    finally:
        gc.enable()


def test_the_same_command_runs_what_is_missing(data, finished):
    asked = []
    with pytest.raises(FileNotFoundError):  # the runs that are asked for, for the table
        flags = ("--data", data, *SMALL)
        run_study("encoder", flags, finished.parent, seeds=2, train=asked.append)
    assert [c.folder.parent.name for c in asked] == ["factorised", "joint-space-time"]
    assert [c.folder.name for c in asked] == ["seed-1", "seed-1"]


def test_old_runs_are_not_reported_as_runs_with_other_flags(data, finished):
    options, flags = {"seeds": 1, "out": finished.parent}, ("--data", data, *SMALL)
    page = (finished / "study.md").read_text()
    with pytest.raises(UserError, match=r"^--out: .*pretrained .*\(lr\); accepted: another"):
        run_study("encoder", (*flags, "--lr", "0.5"), **options)
    with pytest.raises(UserError, match=r"finetune_lr, lr"):
        run_study("encoder", (*flags, "--lr", "0.5", "--finetune-lr", "0.5"), **options)
    assert (finished / "study.md").read_text() == page


def test_a_study_has_one_batch_size(tmp_path):
    with pytest.raises(UserError, match=r"^--batch-size: auto .*; accepted: one number for all"):
        run_study("encoder", ("--batch-size", "auto"), tmp_path)


def test_a_failed_start_does_not_block_a_study(data, tmp_path, monkeypatch, capsys):
    flags, asked = ("--data", data, *SMALL), []
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Run, "pretrain", interrupt)
        run_study("encoder", (*flags, "--lr", "0.1"), tmp_path, 1)
    assert list(tmp_path.glob("encoder/*/pretrained/config.json"))
    with pytest.raises(UserError, match="no run there"):  # nothing was trained, for the table
        run_study("encoder", flags, tmp_path, seeds=1, train=asked.append)
    assert len(asked) == 4  # test_train.py trains after a failed start


def interrupt(run: Run) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("key", ["correct", "right"])  # "right" in runs of version 0.1.0
def test_differences_are_those_of_the_same_clips(key, tmp_path):
    """Three clips of two videos; one run could not use the last one; x is compared with a guess."""
    answers = {"x/0": (1, 1, 0), "x/1": (1, 0, 0), "y/0": (0, 1, 1), "y/1": (0, 1)}
    for run, correct in answers.items():
        guess = {"guess": 0.25} if "x" in run else {}
        clips = [
            {"name": f"c{i}", "video": f"v{i // 2}", key: {"itself": c} | guess}
            for i, c in enumerate(correct)
        ]
        for clip, group in zip(clips, ("visible", "hidden", "hidden"), strict=False):
            clip["group"] = group
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "clips.json").write_text(json.dumps(clips))
    folders = {name: [tmp_path / name / seed for seed in "01"] for name in "xy"}
    shares = correct_shares(folders)
    assert list(shares) == ["x", "guess", "y"]
    assert shares["y"] == {("c0", "v0", "visible"): 0, ("c1", "v0", "hidden"): 1}
    compared = compare(folders)
    assert compared["x", "all"] == Compared("[0.0, 75.0]")
    assert compared["guess", "all"].difference == "-25.0 [-50.0, +25.0]"
    # Of the first two clips x has one and a half right, y one; one video's are drawn together. A
    # single one shows no spread: another may differ with a probability of up to 79.3 %.
    assert compared["y", "all"] == Compared("[10.3, 89.7]", "-25.0 [-84.5, +74.2]")
    assert compared["y", "visible"] == Compared("[0.0, 79.3]", "-100.0 [-100.0, +58.7]")
    assert compared["y", "hidden"] == Compared("[20.7, 100.0]", "+50.0 [-69.0, +89.7]")
    for run in answers:
        (tmp_path / run / "clips.json").unlink()
    assert compare(folders) == {}


def test_a_differences_interval_is_of_its_clips(tmp_path):
    rng = np.random.default_rng(0)
    for run, rate in {"x": 0.5, "y": 0.7}.items():
        clips = [
            {"name": f"c{i}", "video": f"v{i}", "correct": {"itself": float(rng.random() < rate)}}
            for i in range(1000)
        ]
        (tmp_path / run).mkdir()
        (tmp_path / run / "clips.json").write_text(json.dumps(clips))
    compared = compare({name: [tmp_path / name] for name in "xy"})
    mean, low, high = map(float, re.findall(r"[+-]\d+\.\d", compared["y", "all"].difference))
    spread = 1.96 * 100 * ((0.5 * 0.5 + 0.7 * 0.3) / 1000) ** 0.5
    assert mean == pytest.approx(20, abs=2 * spread) and low < mean < high
    assert high - low == pytest.approx(2 * spread, rel=0.1)


def test_runs_at_once_learn_what_runs_in_turn_do(data, finished, tmp_path, capsys):
    at_once = run_study("encoder", ("--data", data, *SMALL), tmp_path, 1, 2)
    one, two = (json.loads((of / "results.json").read_text()) for of in (finished, at_once))
    assert one == two
    told = capsys.readouterr().out
    assert told.count(": started, ") == told.count(": done") == 4


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


def test_a_failed_run_stops_all(data, tmp_path, started):
    failed = tmp_path / "slots" / "1" / "pretrained"
    with pytest.raises(UserError, match=f"{failed}: .* status 2; see log.txt"):
        run_study("slots", ("--data", data, *SMALL), tmp_path, 1, 2)
    assert logs(tmp_path / "slots") == {"1": "no luck\n", "2": "started\nstopped\n"}


@pytest.mark.parametrize(("flags", "parallel"), [((), None), (("--device", "cpu"), 2)])
def test_gpus_are_shared_unless_a_device_is_named(
    flags, parallel, data, tmp_path, started, monkeypatch
):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(UserError, match="exited with status 2"):
        run_study("slots", ("--data", data, *SMALL, *flags), tmp_path, 1, parallel)
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
    code, _, error = command(main, "encoder", "--parallel", "2", *flags)
    ended.set()
    thread.join()
    assert (code, error) == (143, "stopped by SIGTERM; the same command continues\n")
    assert [*logs(tmp_path / "encoder").values()] == ["started\nstopped\n"] * 2


def test_runs_end_with_a_study_that_is_killed(data, tmp_path):
    """They save a checkpoint, and the same command can go on."""
    flags = ["--data", data, *SMALL, "--pretrain-clips", "1000000", "--out", str(tmp_path)]
    command = [sys.executable, "-m", "ivcl_fast.sweep", "encoder", "--parallel", "2", *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    runs = [tmp_path / "encoder" / v / "pretrained" for v in ("factorised", "joint-space-time")]
    while not all((run / "metrics.jsonl").exists() for run in runs):
        assert process.poll() is None
        time.sleep(0.05)
    trainings = children(process.pid)
    process.kill()
    process.wait()
    while not all(map(ended, trainings)):
        time.sleep(0.05)
    for run in runs:
        said = (run / "log.txt").read_text()
        assert "stopped by SIGTERM" in said and "python -m ivcl_fast.train --resume" in said
        assert list(run.glob("pretrain/checkpoints/step-*"))


def test_the_same_study_waits_for_the_other(data, tmp_path, caplog):
    flags = ("--data", data, *SMALL, "--batch-size", "1000")
    (tmp_path / "encoder").mkdir()

    def run() -> None:
        with pytest.raises(UserError, match="do not fill one batch"):
            run_study("encoder", flags, tmp_path, 1)

    other = threading.Thread(target=run)
    with locked(tmp_path / "encoder"):
        other.start()
        while "encoder: run by another process; waiting for it" not in caplog.text:
            assert other.is_alive()
            time.sleep(0.01)
    other.join()


def test_a_study_takes_no_torchrun(tmp_path, monkeypatch, command):
    """Its first rank would hold the lock of the study, and wait in a run for the others."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, error = command(main, "encoder", "--out", tmp_path / "none")
    assert code == 2 and error.startswith("error: WORLD_SIZE: 2 ranks share no study; accepted: ")
    assert error.count("\n") == 1 and not (tmp_path / "none").exists()


@pytest.mark.parametrize("pretrainings", [0, 3])
def test_there_are_at_most_as_many_pretrainings_as_seeds(pretrainings, tmp_path):
    with pytest.raises(UserError, match=r"^--pretrainings: . is not accepted; accepted: 1 to 2"):
        run_study("slots", (), tmp_path, 2, pretrainings=pretrainings)


def test_help_lists_the_studies(command):
    code, out, _ = command(main, "--help")
    assert code == 0 and all(f"  {k}: {s.question}\n" in out for k, s in STUDIES.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "study: 'nothing' is not accepted; accepted: pretraining, supervision"),
        (["slots", "--seeds", "0"], "--seeds: 0 is not accepted; accepted: 1 to 1,000"),
        (["slots", "--parallel", "0"], "--parallel: 0 is not accepted; accepted: 1 to 1,000"),
        (["slots", "--seeds", str(10**9)], "--seeds: 1000000000 is not accepted; accepted: 1 to 1"),
        (["slots", "--seed", "3"], "--seed: the study slots sets this itself"),
        (["slots", "--compare-scratch"], "--compare-scratch: the study slots sets this itself"),
        (["slots", "--no_pictures"], "--no_pictures: the study slots sets this itself"),
        (["slots", "--num_slots=3"], "--num_slots=3: the study slots sets this itself"),
        (["pretraining", "--objective", "mae"], "--objective: the study pretraining sets this"),
        (["slots", "--preset", "huge"], "--preset: 'huge' is not one of"),
        (["long", "--data", "cater:x"], "--data: the study long sets this itself"),
        (["long", "--task=localize"], "--task=localize: the study long sets this itself"),
        (["supervision", "--data", "acre:x"], "--objective: classification needs labels of single"),
    ],
)
def test_mistakes_are_reported_in_one_line(arguments, message, tmp_path, command):
    code, _, error = command(main, *arguments, "--out", tmp_path / "none")
    assert code == 2 and message in error and error.count("\n") == 1
    assert not (tmp_path / "none").exists()


def test_the_page_tells_the_number_of_pretrainings(data, tmp_path, capsys):
    folder = run_study("encoder", ("--data", data, *SMALL), tmp_path, 2, pretrainings=2)
    page = (folder / "study.md").read_text()
    assert " 2 pretrainings each, 2 seeds of finetuning: mean" in page
    assert "--seeds 2 --pretrainings 2`" in page
    assert (folder / "joint-space-time/pretrained-1/pretrain/model.safetensors").is_file()
