"""The folder of a run: what ``--overwrite`` deletes and when, and models that appear whole."""

from __future__ import annotations

import pytest

from ivcl_fast.models.weights import MODEL
from ivcl_fast.training.arguments import parse
from ivcl_fast.training.run_folder import check_folder, opened_folder


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
