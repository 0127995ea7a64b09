"""The folder of a run: what ``--overwrite`` deletes and when, and models that appear whole."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from ivcl_fast import IVCL
from ivcl_fast.models.hub import MODEL_FILES
from ivcl_fast.models.weights import MODEL
from ivcl_fast.training import run_folder
from ivcl_fast.training.arguments import parse
from ivcl_fast.training.run_folder import check_folder, opened_folder, save_model
from tests.support.small_models import config
from tests.support.toy_stage import Killed


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


@pytest.mark.parametrize("moved", range(len(MODEL_FILES)))
def test_a_model_that_has_its_weights_has_all_else(tmp_path, monkeypatch, moved):
    """A stage counts as finished by its weights: also after a kill while the files appear."""
    left = [moved]

    def killed(source: Path, target: Path) -> None:
        if not left[0]:
            raise Killed
        left[0] -= 1
        os.rename(source, target)

    monkeypatch.setattr(run_folder, "os", SimpleNamespace(replace=killed))
    with pytest.raises(Killed):
        save_model(IVCL(config()), tmp_path, {})
    assert len(list(tmp_path.iterdir())) == moved and not (tmp_path / MODEL).exists()
