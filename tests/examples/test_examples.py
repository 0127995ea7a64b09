"""Every script in ``examples/`` runs as its docstring says, and the notebook from top to bottom."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ivcl_fast import IVCLConfig
from tests.support.short_run import ENVIRONMENT, ROOT, ShortRun

EXAMPLES = ROOT / "examples"
PACKAGED = "ivcl_fast/tiny-pretrained"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs an example in a folder; returns what it, and any command that it starts, prints."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)

    def call(name: str, *arguments: object, folder: Path) -> str:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        capfd.readouterr()
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capfd.readouterr().out

    return call


def test_custom_slots(run, tmp_path):
    for name, arguments, end in (
        ("objects_as_slots.py", (48, 256, 0, "last"), "% of the hidden snitches"),
        ("causes_from_objects.py", (8, 256, 0, "mixed"), "% of problems"),
    ):
        said = run(name, *arguments, folder=tmp_path).splitlines()
        assert len(said) == 8 and said[-1].startswith("256 clips: ")
        assert all(line.endswith(end) for line in said)


def test_answer_for_a_video(run, short_run: ShortRun, tmp_path):
    for arguments in ((), (short_run.folder, short_run.video)):
        said = run("answer_for_a_video.py", *arguments, folder=tmp_path)
        assert said.count("%") == 3 and "cell" in said
        assert said.startswith(f"{arguments[1] if arguments else 'ivcl_fast/sample.avi'}:")


def test_read_slots(run, short_run: ShortRun, tmp_path):
    cfg = IVCLConfig.preset("tiny")
    for arguments in ((), (short_run.folder / "pretrain", short_run.video)):
        said = run("read_slots.py", *arguments, folder=tmp_path)
        assert said.count("slot ") == cfg.num_slots
        found = np.load(tmp_path / "slots.npz")
        assert found["slots"].shape == (cfg.num_frames, cfg.num_slots, cfg.embed_dim)
        assert found["attention"].shape == (cfg.num_frames, cfg.num_slots, cfg.grid, cfg.grid)


@pytest.mark.parametrize(
    ("name", "arguments", "said"),
    [
        ("answer_for_a_video.py", ("no/such/run", "video.gif"), "no/such/run: expected a folder"),
        ("read_slots.py", (PACKAGED, "nowhere.avi"), "nowhere.avi: expected a video file"),
        ("serve_onnx.py", ("nowhere.onnx", "video.gif"), "No such file or directory: 'nowhere"),
        ("serve_onnx.py", ("encoder.onnx", "video.gif"), "encoder.onnx: expected classifier.onnx"),
    ],
)
def test_mistakes_are_one_line(monkeypatch, capsys, tmp_path, name, arguments, said):
    if name == "serve_onnx.py":
        pytest.importorskip("onnxruntime")
    frame = Image.new("RGB", (32, 32))
    frame.save(tmp_path / "video.gif", save_all=True, append_images=[frame.rotate(90)])
    about = {"input": {"frames": "even", "crop": "none", "shape": ["batch", 2, 3, 32, 32]}}
    (tmp_path / "encoder.json").write_text(json.dumps(about))
    (tmp_path / "classifier.json").write_text(json.dumps(about | {"classes": ["no", "yes"]}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    error = capsys.readouterr().err
    assert stop.value.code == 2 and said in error and error.count("\n") == 1


def test_accelerate_timm_vit(run, tmp_path):
    pytest.importorskip("timm")
    said = run("accelerate_timm_vit.py", folder=tmp_path)
    replaced, kept = re.findall(r"(\d+) (?:modules replaced|kept)", said)
    assert int(replaced) + int(kept) == 12 and "restored" in said  # the attention of 12 blocks


def test_one_op_in_your_model(run, tmp_path):
    assert "the same in all three ways" in run("one_op_in_your_model.py", folder=tmp_path)


@pytest.mark.parametrize("script", ["train.sbatch", "prepare.sbatch"])
def test_slurm_tasks_get_the_cpus_of_the_job(tmp_path, script):
    for program, line in {"srun": 'echo "$@"', "scontrol": "echo node1"}.items():
        (tmp_path / program).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / program).chmod(0o755)
    ids = "JOB_ID", "JOB_NODELIST", "NNODES", "ARRAY_TASK_ID", "ARRAY_TASK_COUNT"
    job = {f"SLURM_{name}": "1" for name in ids} | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    for given, option in (({}, ""), ({"SLURM_CPUS_PER_TASK": "16"}, "--cpus-per-task=16 ")):
        command = ["bash", EXAMPLES / "slurm" / script, "--name", "big"]
        done = subprocess.run(command, env=job | given, capture_output=True, text=True)
        assert done.stdout.startswith(f"{option}python -m ") and not done.returncode, done.stderr


def test_the_notebook_runs(short_run: ShortRun, tmp_path, monkeypatch):
    """It finds the finished run in its folder, and its first command only prints its help."""
    nbformat, nbclient = map(pytest.importorskip, ("nbformat", "nbclient"))
    notebook = nbformat.read(EXAMPLES / "quickstart.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    saved = [output for cell in cells for output in cell.outputs]
    assert not [output for output in saved if output.output_type == "error"]
    assert '"ivcl_fast.train", "--quick"]' in cells[0].source
    cells[0].source = cells[0].source.replace("--quick", "--help")
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    home = shutil.copytree(short_run.home, tmp_path / "home")
    resources = {"metadata": {"path": str(home)}}
    patience = {"timeout": None, "startup_timeout": 600}  # on a busy machine
    nbclient.NotebookClient(notebook, resources=resources, **patience).execute()
