"""The main job as a user runs it: the quick run, stops and continuations, and mistakes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from ivcl_fast import IVCL, IVCLClassifier
from ivcl_fast.data.synthetic.cater.write import SyntheticCater, write_cater
from ivcl_fast.errors import UserError
from ivcl_fast.evaluate import main as evaluate_main
from ivcl_fast.files import LOCK
from ivcl_fast.manifest import MANIFEST
from ivcl_fast.train import main as train_main
from ivcl_fast.training.arguments import parse
from ivcl_fast.training.run import Run
from ivcl_fast.training.run_folder import CHECKPOINTS, check_folder, opened_folder
from ivcl_fast.visualize import main as visualize_main
from tests.support.short_run import FLAGS
from tests.support.small_models import FRAME_FLAGS, RUN_FLAGS
from tests.support.strangers import check_strange, strange_files

SMALL = [
    *RUN_FLAGS, *FRAME_FLAGS, "--pretrain-clips", "160", "--finetune-clips", "40",
    "--save-every", "3",
]  # fmt: skip
QUICKLY = ["--no-pictures", "--no-compare-memoryless"]
"""What a run does after its stages is left out."""


def start(folder: Path, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "ivcl_fast.train", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def finish(process: subprocess.Popen, status: int = 0) -> str:
    out, err = process.communicate()
    assert process.returncode == status, out[-2000:] + err[-4000:]
    return out + err


@pytest.fixture(scope="module")
def cater(tmp_path_factory) -> Path:
    return write_cater(tmp_path_factory.mktemp("cater"), SyntheticCater(train=12, val=6), 1)


def test_quick_run_does_everything(short_run, tmp_path, command, monkeypatch):
    assert "chance" in short_run.said and "2.8 %" in short_run.said
    assert "no memory" in short_run.said
    assert "--batch-size auto: 16 clips per step, the default of CPUs" in short_run.said
    home = shutil.copytree(short_run.home, tmp_path / "home")
    run = home / "runs" / "synthetic-localize-tiny-quick"
    for name in ("reconstruction", "slot_attention", "curves", "answers"):
        assert (run / f"{name}.png").stat().st_size > 10_000, name
    report = (run / "report.md").read_text()
    assert "hidden" in report and "reconstruction.png" in report and "--quick" in report
    assert "192 last frames and 64 whole clips of finetuning." in report
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {r["stage"] for r in records} == {"pretrain", "finetune", "last-frame"}
    assert any("val_top1" in r for r in records)
    assert list((run / "tensorboard").iterdir())

    monkeypatch.chdir(home)
    code, out, _ = command(evaluate_main, run)
    assert code == 0 and "hidden" in out and "chance" in out
    video = next((home / "data").glob("*/videos/*.avi"))
    code, out, _ = command(evaluate_main, run, "--predict", video)
    assert code == 0 and out.count("cell ") == 5

    assert json.loads((run / "config.json").read_text())["batch_size"] == 16
    code, out, err = command(train_main, *FLAGS)  # it was finished before, and has its number
    assert code == 0 and "report" in out and "auto" not in out + err


@pytest.mark.parametrize("reader", ["gone", "full disk"])
def test_training_goes_on_without_a_standard_output(cater, tmp_path, reader):
    out = subprocess.PIPE if reader == "gone" else open("/dev/full", "w")  # noqa: SIM115
    flags = ["--data", f"cater:{cater}", *RUN_FLAGS, *FRAME_FLAGS, "--stage", "pretrain"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ivcl_fast.train", *flags, *QUICKLY, "--name", "run"],
        cwd=tmp_path,
        stdout=out,
        stderr=subprocess.PIPE,
        text=True,
    )
    (process.stdout or out).close()
    error = process.stderr.read()
    assert process.wait() == 0 and "Traceback" not in error
    assert error.count("standard output: ") == 1 and "going on without it" in error
    assert (tmp_path / "runs" / "run" / "report.md").is_file()


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


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_leaves_a_run_that_resume_finishes(
    cater, uninterrupted, tmp_path, command, monkeypatch, signum, status
):
    first = start(tmp_path, "--data", f"cater:{cater}", "--name", "run", *SMALL)
    wait_for(tmp_path, "runs/run/pretrain/checkpoints/step-*3", first)
    first.send_signal(signum)
    said = finish(first, status)
    assert "python -m ivcl_fast.train --resume" in said and "Traceback" not in said
    monkeypatch.chdir(tmp_path)
    assert command(train_main, "--resume", "runs/run", *QUICKLY)[0] == 0
    assert weights(tmp_path / "runs" / "run") == weights(uninterrupted)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--preset", "huge"], "'huge' is not one of tiny, small, base64, base224"),
        (["--data", "cater:nowhere"], "nowhere: no such folder"),
        (["--data", "movies"], "--data: 'movies' is not a data source; accepted: cater:DIR"),
        (["--data", "/"], "--data: '/' is not a data source (did you mean videos:/?); accepted: "),
        (["--data", "a" * 300], "is not a data source; accepted: "),
        (["--task", "count"], "'count' is not one of localize"),
        (["--mask-ratio", "1.5"], "--mask-ratio: 1.5 is not between 0 and 1"),
        (["--image-size", "60"], "--image-size: 60 is not a multiple of patch_size 8"),
        (["--batch-size", "0"], "--batch-size: 0 is not accepted; accepted: at least 1"),
        (["--grad-accum-steps", "3"], "--grad-accum-steps: 3 is not accepted; accepted: a divisor"),
        (["--lr", "-1"], "--lr: -1.0 is not accepted; accepted: above 0"),
        (["--lr", "inf"], "--lr: inf is not accepted; accepted: at most 1,000,000,000,000"),
        (["--lr", "1e300"], "--lr: 1e+300 is not accepted; accepted: at most"),
        (["--mlp-ratio", "inf"], "--mlp-ratio: inf is not a number of at most 8,192"),
        (["--mlp-ratio", "1e30"], "--mlp-ratio: 1e+30 is not a number of at most 8,192"),
        (["--num-frames", str(10**9)], "--num-frames: 1000000000 is not a number of at most 8,192"),
        (["--image-size", str(10**6)], "--image-size: 1000000 is not a number of at most 8,192"),
        (["--frame-stride", str(10**20)], "--frame-stride: 100000000000000000000 is not accepted"),
        (["--finetune-lr", "nan"], "--finetune-lr: nan is not accepted; accepted: above 0"),
        (["--clip-norm", "0"], "--clip-norm: 0.0 is not accepted; accepted: above 0"),
        (["--weight-decay", "-1"], "--weight-decay: -1.0 is not accepted; accepted: at least 0"),
        (["--warmup-steps", "-5"], "--warmup-steps: -5 is not accepted; accepted: at least 0"),
        (["--val-videos", "0"], "--val-videos: 0 is not accepted; accepted: at least 1"),
        (["--num-query-frames", "17"], "--num-query-frames: 17 is more than num_frames"),
        (
            ["--data", "synthetic:acre-iid", "--num-frames", "16"],
            "have 7 frames; accepted: 7, or 1",
        ),
        (["--seed", "-1"], "--seed: -1 is not accepted; accepted: 0 to 2^63 - 1"),
        (["--seed", str(2**64)], "--seed: "),
        (["--resume", "nowhere"], "nowhere: no run there"),
        (["--no-such-flag"], "no-such-flag"),
        (["--device", "cuda:99"], "--device"),
        (["--init", "nowhere.safetensors"], "nowhere.safetensors"),
        (["--shard"], "--shard: there is a single process; accepted: several ranks, started by"),
        (["--out", "/proc/runs"], "--out: /proc/runs/"),
    ],
)
def test_mistakes_are_reported_before_any_work(arguments, said, tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = command(train_main, *arguments)
    assert code == 2 and said in err and "Traceback" not in err + out
    assert not list(tmp_path.iterdir()), "something was left behind"


def test_a_label_fraction_without_a_batch_is_refused_before_pretraining(cater, command, tmp_path):
    flags = ["--data", f"cater:{cater}", *SMALL, "--out", tmp_path, "--label-fraction", "0.0001"]
    code, _, err = command(train_main, *flags)
    assert code == 2 and err.startswith("error: --label-fraction: 0.0001 ") and "batch of 4" in err
    assert not list(tmp_path.iterdir())


def test_other_settings_in_the_same_folder_are_refused(cater, uninterrupted, command, monkeypatch):
    monkeypatch.chdir(uninterrupted.parent.parent)
    flags = ["--data", f"cater:{cater}", "--name", "run", *SMALL, "--lr", "0.5"]
    code, _, err = command(train_main, *flags)
    assert code == 2 and "other settings (lr)" in err and "--overwrite" in err


def test_results_without_models_are_not_replaced(cater, uninterrupted, tmp_path):
    """Models are large, so that users delete them and keep what was measured."""
    run = shutil.copytree(uninterrupted, tmp_path / "run")
    for file in run.glob("*/*.safetensors"):
        file.unlink()
    flags = ["--data", f"cater:{cater}", *SMALL, "--out", str(tmp_path), "--name", "run"]
    with pytest.raises(UserError, match=r"other settings \(lr\).* or --overwrite it"):
        check_folder(parse([*flags, "--lr", "0.5"]))


def test_what_a_finished_stage_started_from_may_be_gone(cater, uninterrupted, command, tmp_path):
    run = shutil.copytree(uninterrupted, tmp_path / "run")
    (run / MANIFEST).unlink()
    settings = json.loads((run / "config.json").read_text()) | {"init": str(tmp_path / "gone")}
    (run / "config.json").write_text(json.dumps(settings))
    code, _, err = command(train_main, "--resume", run, *QUICKLY)
    assert code == 0, err
    (run / "pretrain" / "model.safetensors").unlink()
    code, _, err = command(train_main, "--resume", run, *QUICKLY)
    assert code == 2 and f"{tmp_path / 'gone'}: no model.safetensors there" in err


def test_a_failed_start_does_not_block_its_folder(cater, command, monkeypatch, tmp_path):
    flags = ["--data", f"cater:{cater}", *SMALL, "--stage", "pretrain", "--out", tmp_path]
    flags += ["--name", "run", *QUICKLY]
    assert "do not fill one batch of 100" in command(train_main, *flags, "--batch-size", "100")[2]
    assert not list(tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(Run, "pretrain", lambda run: fail())
        assert command(train_main, *flags, "--lr", "0.1")[0] == 2
    assert (tmp_path / "run" / "config.json").is_file()
    assert command(train_main, *flags)[0] == 0
    code, _, err = command(train_main, *flags, "--lr", "0.5")
    assert code == 2 and "other settings (lr)" in err


def fail():
    raise UserError("no such luck")


def test_a_stage_of_few_steps_gets_a_warning(cater, uninterrupted, command, monkeypatch):
    monkeypatch.chdir(uninterrupted.parent.parent)
    _, out, _ = command(train_main, "--data", f"cater:{cater}", "--name", "run", *SMALL, *QUICKLY)
    assert "steps of 4, too few to learn much" in out


def test_overwriting_keeps_the_files_of_others(cater, uninterrupted, command, tmp_path):
    """Of everything that commands wrote into a run, nothing stays; of the rest, everything."""
    run = shutil.copytree(uninterrupted, tmp_path / "run")
    flags = ["--data", f"cater:{cater}", *SMALL, "--out", tmp_path, "--name", "run"]
    assert command(visualize_main, run, "--clips", "1", "--per-head")[0] == 0
    step = run / "pretrain" / "checkpoints" / "step-00000003"
    step.mkdir(parents=True)
    shutil.copy(run / "pretrain" / "model.safetensors", step)
    (pictures,) = {path.parent for path in run.glob("visualize/*/*")}
    shutil.copytree(pictures, run / "visualize" / "videos" / "of a folder" / "clip")
    (run / "export").mkdir()
    for name in ("encoder.onnx", "encoder.json", "classifier.pt2"):
        (run / "export" / name).write_text("exported")
    (run / "log.txt").write_text("of a study")
    strangers = strange_files(run)
    settings = parse([*map(str, flags), "--lr", "0.5", "--overwrite"])
    with opened_folder(settings):
        left = {path for path in run.rglob("*") if path.is_file()}
        begun = {run / "config.json", run / MANIFEST, run / LOCK}
        assert left - {run / "log.txt"} == {*strangers, *begun}
        assert json.loads((run / "config.json").read_text())["lr"] == 0.5
    check_strange(strangers)


def test_training_beside_the_files_of_others(cater, uninterrupted, command, tmp_path):
    run = tmp_path / "run"
    for stage in ("pretrain", "finetune"):
        for step in ("step-00000003", "step-00000030"):
            (run / stage / CHECKPOINTS / step).mkdir(parents=True)
        (run / stage / "model.partial").mkdir()
    strangers = strange_files(run)
    flags = ["--data", f"cater:{cater}", *SMALL, "--out", tmp_path, "--name", "run"]
    code, _, err = command(train_main, *flags, "--no-compare-memoryless")
    assert code == 0, err
    check_strange(strangers)
    assert weights(run) == weights(uninterrupted)


@pytest.mark.parametrize("kind", ["dangling link", "loop", "folder"])
def test_something_else_in_the_place_of_a_file(kind, cater, uninterrupted, command, tmp_path):
    """The command goes on with a file of its own, or names it in one line; nothing is deleted."""
    run = shutil.copytree(uninterrupted, tmp_path / "run")
    (run / MANIFEST).unlink()
    settings = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(settings | {"out": str(tmp_path)}))
    flags = ["--data", f"cater:{cater}", *SMALL, "--out", tmp_path, "--name", "run"]
    for name in ("metrics.jsonl", "answers.json", "report.md"):
        file = run / name
        content = file.read_bytes()
        file.unlink()
        if kind == "folder":
            file.mkdir()
        else:
            file.symlink_to(name if kind == "loop" else "nowhere")
        reads = [] if name == "metrics.jsonl" else QUICKLY  # curves are drawn from it
        code, _, err = command(train_main, *flags, *reads)
        if code == 0:
            assert kind != "folder" and (file.is_file() or name == "metrics.jsonl"), name
        else:
            assert code == 2 and err.splitlines()[-1].startswith(f"error: {file}: "), (name, err)
            assert kind == "loop" or file.is_dir(), name
        file.rmdir() if file.is_dir() else file.unlink(missing_ok=True)
        file.write_bytes(content)
    assert command(train_main, *flags, *QUICKLY)[0] == 0


@pytest.mark.parametrize(
    ("kind", "below"),
    [
        ("", ""),
        ("", "pretrain"),
        ("", "pretrain/model.safetensors"),
        ("timm:", "pretrain/model.safetensors"),
    ],
)
def test_a_run_does_not_overwrite_the_weights_that_it_starts_from(
    kind, below, cater, uninterrupted, command, tmp_path
):
    run = shutil.copytree(uninterrupted, tmp_path / "run")
    flags = ["--data", f"cater:{cater}", *SMALL, "--out", tmp_path, "--name", "run"]
    flags += ["--stage", "finetune", "--init", f"{kind}{run / below}"]
    code, _, err = command(train_main, *flags)
    assert code == 2 and err.endswith("choose another --name\n")
    code, _, err = command(train_main, *flags, "--overwrite")
    assert code == 2 and "--overwrite: would delete the weights of --init" in err
    assert weights(run) == weights(uninterrupted)


@pytest.mark.parametrize("name", ["../precious", "/precious", "a/../../precious", ".", ".."])
def test_a_name_outside_out_is_refused(name, cater, command, tmp_path):
    (tmp_path / "precious").mkdir()
    strangers = strange_files(tmp_path / "precious")
    name = str(tmp_path / "precious") if name.startswith("/") else name
    flags = ["--data", f"cater:{cater}", *SMALL, "--out", tmp_path / "runs", "--name", name]
    code, _, err = command(train_main, *flags, "--overwrite")
    assert code == 2 and err.startswith("error: --name: ") and err.count("\n") == 1
    check_strange(strangers)


def test_folders_that_are_no_run_are_not_overwritten(cater, command, tmp_path):
    run, precious = tmp_path / "run", tmp_path / "precious"
    flags = ["--data", f"cater:{cater}", *SMALL, "--out", tmp_path, "--name"]
    precious.mkdir()
    strangers = strange_files(precious) | {precious / "report.md": "mine"}
    (precious / "report.md").write_text("mine")
    code, _, err = command(train_main, *flags, "precious", "--overwrite")
    assert code == 2 and "holds report.md, but no run" in err and err.count("\n") == 1
    strangers[precious / "config.json"] = "{}"
    (precious / "config.json").write_text("{}")
    code, _, err = command(train_main, *flags, "precious", "--overwrite")
    assert code == 2 and "not the settings of a run" in err and err.count("\n") == 1
    with opened_folder(parse([*map(str, flags), "run"])):
        pass
    (tmp_path / "link").symlink_to(run)
    (run / "pretrain").symlink_to(precious)
    for name in ("link", "run"):
        code, _, err = command(train_main, *flags, name, "--overwrite")
        assert code == 2 and "is a link; accepted" in err and err.count("\n") == 1
    check_strange(strangers)


def test_checkpoint_of_another_size_is_refused(cater, uninterrupted, command, tmp_path):
    flags = ["--data", f"cater:{cater}", *SMALL, "--embed-dim", "32", "--out", tmp_path]
    flags += ["--stage", "finetune", "--init", uninterrupted / "pretrain"]
    code, _, err = command(train_main, *flags)
    assert code == 2 and "is [16] there, but [32]" in err and "(embed_dim 16)" in err


def test_evaluate_mistakes(uninterrupted, command, tmp_path):
    for arguments, said in (
        ([tmp_path], "no run there"),
        ([uninterrupted, "--model", "scratch"], "accepted: finetune, last-frame"),
        ([uninterrupted, "--predict", tmp_path / "no.avi"], "no.avi"),
    ):
        code, _, err = command(evaluate_main, *arguments)
        assert code == 2 and said in err and "Traceback" not in err
