"""A little of ``make soak``, and that its judge can say no.

Kills and rank deaths on the way are in test_train.py and test_distributed.py.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from ivcl_fast import checkpoint
from tests import soak


@pytest.mark.parametrize("seed", range(20))
def test_damage_is_found(tmp_path, seed, caplog):
    soak.damage(seed, tmp_path / "checkpoints")
    assert "is damaged and passed over" in caplog.text


def test_damage_that_is_not_found_is_a_failure(capsys, monkeypatch, caplog):
    monkeypatch.setattr(checkpoint, "check", lambda folder, names: None)
    with pytest.raises(SystemExit) as stop, caplog.at_level(logging.CRITICAL):
        soak.main(["--kills=0", "--deaths=0", "--damages=30"])
    assert stop.value.code == 1
    *failures, header, row = capsys.readouterr().out.splitlines()
    title, number, struck, failed, *_ = row.removeprefix("damaged ").split()
    assert header == soak.HEADER and (title, number) == ("checkpoint", "30")
    assert 0 < int(failed) == len(failures) == 30 - int(struck)
    assert all(line.endswith("was not found") for line in failures)


def finished(run: Path, losses: list[float], weights: bytes) -> Path:
    (run / "pretrain").mkdir(parents=True)
    records = [{"stage": "pretrain", "step": s, "loss": x} for s, x in enumerate(losses)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (run / "pretrain" / checkpoint.MODEL).write_bytes(weights)
    return run


def test_other_curves_and_weights_are_failures(tmp_path):
    trials = soak.Trials.__new__(soak.Trials)  # without its runs
    trials.whole = soak.Whole(finished(tmp_path / "whole", [0.5, 0.25], b"w"), 1.0, 1.0)
    equal = finished(tmp_path / "equal", [0.5, 0.25], b"w")
    trials.compare(equal)
    assert not equal.exists()
    for name, losses, weights in (
        ("bit", [0.5, 0.2500000001], b"w"),
        ("short", [0.5], b"w"),
        ("weights", [0.5, 0.25], b"v"),
    ):
        with pytest.raises(soak.Failure, match="another curve, or other weights"):
            trials.compare(finished(tmp_path / name, losses, weights))


def test_a_run_trains_from_its_first_checkpoint_to_its_model(tmp_path):
    folder = tmp_path / "pretrain" / "checkpoints"
    (folder / "step-00000003.partial").mkdir(parents=True)
    assert not soak.trains(tmp_path)
    (folder / "step-00000003").mkdir()
    assert soak.trains(tmp_path)
    (tmp_path / "pretrain" / checkpoint.MODEL).touch()
    assert not soak.trains(tmp_path)
