"""Mistakes other than wrong values: folders, ``--resume``, many ranks, full disks, closed pipes.

Wrong values of single flags are in test_train.py.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ivcl_fast import __main__
from ivcl_fast.errors import UserError
from ivcl_fast.training.arguments import parse
from ivcl_fast.training.run_folder import check_folder, opened_folder
from ivcl_fast.training.settings import TrainConfig, load_settings


@pytest.fixture
def started(tmp_path) -> Path:
    """The folder of a run that has been started."""
    settings = TrainConfig().replace(out=tmp_path, name="a run", lr=0.5)
    with opened_folder(settings):
        return settings.folder


def test_resume_keeps_what_is_learnt_and_takes_how(started):
    arguments = ["--resume", str(started), "--compile", "--workers=3", "--no-pictures"]
    settings = check_folder(parse(arguments))
    assert (settings.optim.lr, settings.folder) == (0.5, started)
    changeable = settings.speed.compile, settings.data.workers, settings.output.pictures
    assert changeable == (True, 3, False)
    less_memory = ["--grad-accum-steps=4", "--grad-checkpoint"]  # for fewer GPUs
    settings = check_folder(parse([*arguments[:2], *less_memory]))
    assert (settings.optim.grad_accum_steps, settings.speed.grad_checkpoint) == (4, True)
    (started / "pretrain").mkdir()
    (started / "pretrain" / "model.safetensors").touch()  # now others would be refused
    assert check_folder(settings) == settings
    assert check_folder(parse(arguments[:2])) == load_settings(started)


@pytest.mark.parametrize("flag", ["--lr=0.7", "--num_slots=3", "--name=b", "--overwrite"])
def test_resume_refuses_to_make_it_another_run(started, flag):
    name = flag.partition("=")[0].replace("_", "-")
    with pytest.raises(UserError, match=f"^{name}: expected with --resume only "):
        parse(["--resume", str(started), flag])


def test_a_folder_in_which_another_process_trains(started):
    settings = load_settings(started)
    (started / "pretrain").mkdir()
    (started / "pretrain" / "model.safetensors").touch()
    for other in (settings, settings.replace(overwrite=True), settings.replace(lr=0.7)):
        with (
            opened_folder(settings),
            pytest.raises(UserError, match="--name: expected"),
            opened_folder(other),
        ):
            pass
        assert (started / "pretrain" / "model.safetensors").is_file()


def test_a_refused_file_is_reported_in_one_line(command):
    def main():
        raise OSError(errno.ENOSPC, "No space left on device", "runs/report.md")

    assert command(main)[0::2] == (2, "error: runs/report.md: No space left on device\n")


@pytest.mark.parametrize(
    "what",
    [
        lambda: torch.empty(2**40, 2**10),
        lambda: fail(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")),
    ],
)
def test_too_little_memory_is_one_line(what, command):
    code, _, err = command(what)
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1
    assert err.endswith("; try a smaller --batch-size\n")


def fail(error: BaseException):
    raise error


def test_ctrl_c_while_a_command_is_imported(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("import time\nprint(flush=True)\ntime.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    command = [sys.executable, "-m", "ivcl_fast.train"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.stderr.read() == b"" and process.wait() == -signal.SIGINT


@pytest.mark.parametrize("continues", [False, True])
def test_ctrl_c_stops_a_command(command, continues):
    def interrupted():
        signal.raise_signal(signal.SIGINT)

    code, _, err = command(interrupted, continues=continues)
    assert code == 130 and err.startswith("stopped") and ("same command" in err) == continues


def test_a_closed_pipe_ends_a_command_quietly():
    train = [sys.executable, "-m", "ivcl_fast.train", "--help"]
    process = subprocess.Popen(train, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 141


def test_the_package_lists_and_runs_its_commands(monkeypatch, capsys):
    files = Path(__main__.__file__).parent.glob("[a-z]*.py")
    assert __main__.COMMANDS.keys() == {
        file.stem for file in files if "\n    run_command(main" in file.read_text()
    }

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["ivcl-fast", *arguments])
        __main__.main()

    run()
    listed = capsys.readouterr().out
    assert all(f"\n  {name} " in listed for name in __main__.COMMANDS)
    with pytest.raises(SystemExit, match="2"):
        run("trian")
    assert "'trian'" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        run("prepare", "films:DIR")
    assert "'films:DIR'" in capsys.readouterr().err
