"""What a user gets wrong beside single flags: folders, ``--resume``, many ranks, full disks.

Single flags are in test_train.py.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys
from pathlib import Path

import pytest

from ivcl_fast import IVCL, errors
from ivcl_fast.distributed import group as distributed
from ivcl_fast.errors import UserError, run_command
from ivcl_fast.train import main as train_main
from ivcl_fast.training import run
from ivcl_fast.training.arguments import parse
from ivcl_fast.training.loop import Interrupted
from ivcl_fast.training.run_folder import claim, resolve
from ivcl_fast.training.settings import CONFIG, TrainConfig, load_settings
from tests.support.small_models import config


@pytest.fixture
def started(tmp_path) -> Path:
    """The folder of a run that has begun."""
    settings = TrainConfig().replace(out=tmp_path, name="run", lr=0.5)
    with claim(settings):
        return settings.folder


def as_rank(rank: int, world: int, monkeypatch) -> None:
    for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(distributed, "let_rank0_report_first", lambda: None)


def train(arguments: list, monkeypatch) -> int:
    """The exit status of the command."""
    monkeypatch.setattr(sys, "argv", ["train", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        run_command(train_main)
    return int(stop.value.code or 0)


def test_resume_keeps_what_is_learnt_and_takes_how(started):
    arguments = ["--resume", str(started), "--shard", "--workers=3", "--no-pictures"]
    settings = resolve(parse(arguments))
    assert (settings.optim.lr, settings.folder) == (0.5, started)
    free = settings.speed.shard, settings.data.workers, settings.output.pictures
    assert free == (True, 3, False)
    assert resolve(parse(arguments[:2])) == load_settings(started)


@pytest.mark.parametrize(
    "flag", ["--lr=0.7", "--num_slots=3", "--name=b", "--overwrite", "--quick"]
)
def test_resume_refuses_to_make_it_another_run(started, flag):
    name = flag.partition("=")[0].replace("_", "-")
    with pytest.raises(UserError, match=f"^{name}: a run keeps its settings; accepted"):
        parse(["--resume", str(started), flag])


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").touch()
    assert train(["--out", tmp_path / "file" / "runs"], monkeypatch) == 2
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    assert train(["--out", tmp_path / "runs"], monkeypatch) == 2
    file, name = tmp_path / "file", "runs/synthetic-localize-tiny"
    assert capsys.readouterr().err.splitlines() == [
        f"error: {file}/{name}: {file} cannot be written to; choose another --out",
        f"error: {tmp_path}/{name}: {tmp_path} cannot be written to; choose another --out",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_another_process_trains_in(started, monkeypatch, capsys):
    settings = load_settings(started)
    (started / "pretrain").mkdir()
    overwriting = settings.replace(overwrite=True)
    for other in (settings, overwriting):
        said = "run: another process trains there; wait for it, or choose another --name"
        with claim(settings), pytest.raises(UserError, match=said), claim(other):
            pass
        assert (started / "pretrain").is_dir()
    with claim(overwriting):
        assert [path.name for path in started.iterdir()] == [CONFIG]
    monkeypatch.setattr(fcntl, "flock", no_locks)
    with claim(settings), claim(settings):
        pass


def no_locks(handle, operation):
    raise OSError(errno.ENOLCK, "No locks available")


@pytest.mark.parametrize("refusal", sorted(errors.REFUSALS))
def test_a_refused_file_is_told_in_one_line(refusal, capsys):
    def main():
        raise OSError(refusal, os.strerror(refusal), "runs/report.md")

    with pytest.raises(SystemExit) as stop:
        run_command(main)
    assert stop.value.code == 2
    said = f"error: runs/report.md: {os.strerror(refusal)}; give a folder that can be written, "
    assert capsys.readouterr().err.startswith(said)


def test_other_errors_of_the_system_keep_their_traceback():
    def main():
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        run_command(main)


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left"), "SafetensorError"])
def test_a_full_disk_at_the_finished_model(tmp_path, monkeypatch, failure):
    failure = run.SafetensorError("No space left") if isinstance(failure, str) else failure
    model = IVCL(config())
    (tmp_path / "pretrain").mkdir()

    def save_pretrained(folder):
        folder.mkdir()
        (folder / "config.json").touch()
        raise failure

    monkeypatch.setattr(model, "save_pretrained", save_pretrained)
    with pytest.raises(
        UserError, match=r"cannot be written: .*No space left.* same command goes on"
    ):
        run.save_whole(model, tmp_path / "pretrain")
    assert not list((tmp_path / "pretrain").iterdir())


def test_three_ranks_cannot_share_sixteen_clips(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    as_rank(0, 3, monkeypatch)
    assert train(["--quick"], monkeypatch) == 2
    said = (
        "error: --batch-size: 16 clips do not split evenly over 3 ranks; accepted: a multiple of 3"
    )
    assert capsys.readouterr().err.splitlines() == [said]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rank", [0, 1])
def test_one_rank_tells_of_an_unknown_flag(rank, monkeypatch, capsys):
    as_rank(rank, 2, monkeypatch)
    waited = []
    monkeypatch.setattr(
        distributed, "let_rank0_report_first", lambda: waited.append(distributed.rank())
    )
    assert train(["--quik"], monkeypatch) == 2
    assert waited == [rank]  # it returns at once on rank 0
    said = capsys.readouterr()
    assert ("--quik" in said.out + said.err) == (rank == 0)
    assert rank == 0 or not said.out + said.err


@pytest.mark.parametrize(("world", "launcher"), [(1, "python"), (2, "torchrun ...")])
def test_a_stopped_run_says_how_to_go_on(world, launcher, started, monkeypatch, capsys):
    def stop(settings):
        raise Interrupted(15)

    if world > 1:
        as_rank(0, world, monkeypatch)
    monkeypatch.setattr("ivcl_fast.train.train", stop)
    assert train(["--resume", started], monkeypatch) == 143
    again = f"{launcher} -m ivcl_fast.train --resume {started}"
    assert capsys.readouterr().err == f"stopped by SIGTERM; go on with: {again}\n"
