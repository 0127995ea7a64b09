"""The weights that a run starts from, and what ``--overwrite`` deletes."""

from __future__ import annotations

import pytest

from ivcl_fast.analysis.finished_runs import origin
from ivcl_fast.models.weights import MODEL
from ivcl_fast.training.arguments import parse
from ivcl_fast.training.run_folder import check_folder, opened_folder
from ivcl_fast.training.settings import write_settings


def test_a_report_names_the_initial_weights(tmp_path):
    place = ["--out", str(tmp_path.parent), "--name", tmp_path.name]
    mae = parse(["--objective", "mae", *place])
    write_settings(mae)
    for stage in ("pretrain", "scratch"):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "model.safetensors").touch()
    assert origin(mae) == "image MAE"
    for init, said in (
        ("random", "from scratch"),
        (str(tmp_path / "pretrain"), "image MAE"),
        (str(tmp_path / "scratch"), f"from the model scratch of {tmp_path.name}"),
        (str(tmp_path / "elsewhere" / "model.safetensors"), "pretrained"),
        ("timm:vit_tiny_patch16_224", "pretrained: timm:vit_tiny_patch16_224"),
        (f"timm:{tmp_path}/vit.safetensors", "pretrained"),
    ):
        assert origin(parse(["--stage", "finetune", "--init", init])) == said


@pytest.mark.parametrize("how", ["again", "resumed", "restarted"])
def test_a_run_that_replaced_another_keeps_its_own_progress(tmp_path, monkeypatch, how):
    """Only the same command, typed again, begins anew; torchrun restarts what it has begun."""
    command = ["--out", str(tmp_path), "--name", "run", "--overwrite"]
    saved = tmp_path / "run" / "pretrain" / "checkpoints" / "step-00000005" / MODEL
    with opened_folder(check_folder(parse(command))):
        saved.parent.mkdir(parents=True)
        saved.touch()
    if how == "resumed":
        command = ["--resume", str(tmp_path / "run")]
    elif how == "restarted":
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    with opened_folder(check_folder(parse(command))):
        assert saved.exists() == (how != "again")
