"""A little of ``make soak``, and that its judge can say no.

Kills and rank deaths on the way are in test_train.py and test_distributed_faults.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ivcl_fast.training import checkpoint
from tests.support import soak

LOSSES = [0.5, 0.4, 0.3, 0.25, 0.25]


@pytest.mark.parametrize("seed", range(20))
def test_damage_is_found(tmp_path, seed):
    assert soak.damage(seed, tmp_path / "checkpoints") in ("flip", "cut", "remove")


def test_damage_that_is_not_found_is_a_failure(capsys, monkeypatch, caplog):
    monkeypatch.setattr(checkpoint, "check", lambda folder, names: None)
    with pytest.raises(SystemExit) as stop:
        soak.main(["--kills=0", "--deaths=0", "--damages=30"])
    assert stop.value.code == 1 and not caplog.text
    *failures, header, row = capsys.readouterr().out.splitlines()
    number, failed, *_ = row.removeprefix("damaged checkpoint").split()
    assert header == soak.HEADER and number == "30"
    assert 0 < int(failed) == len(failures)
    assert all(line.endswith("was not found") for line in failures)


def test_damage_that_is_not_told_is_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint.log, "warning", lambda *arguments: None)
    with pytest.raises(soak.Failure, match=r"was not told in one line: \[\]"):
        soak.damage(0, tmp_path)


def test_a_row_tells_what_the_faults_hit():
    row = soak.repeat("kill -9", lambda seed, name: ["training", "start-up"][seed % 2], range(3))
    assert str(row).split()[:4] == ["kill", "-9", "3", "0"]
    assert str(row).endswith("s  1 start-up, 2 training")


class Stubs(soak.Trials):
    """Trials of a shell script in place of training."""

    def __init__(self, folder: Path, script: str, ranks: int = 1) -> None:
        self.folder, self.ranks, self.script = folder, ranks, script
        finished(self.run("whole"), LOSSES, b"w")
        self.whole = soak.Whole(soak.outcome(self.run("whole")), 0.0, 0.0)

    def command(self, name: str, restarts: int = 0) -> list[str]:
        return ["bash", "-c", self.script]


def finished(run: Path, losses: list[float], weights: bytes) -> Path:
    (run / "pretrain").mkdir(parents=True)
    records = [
        {"stage": "pretrain", "step": soak.LOGGED * (number + 1), "loss": loss, "seconds": 0.1}
        for number, loss in enumerate(losses)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (run / "pretrain" / checkpoint.MODEL).write_bytes(weights)
    return run


@pytest.mark.parametrize(
    ("name", "losses", "weights", "said"),
    [
        ("bit", [*LOSSES[:-1], 0.2500000001], b"w", "another curve, or other weights"),
        ("short", LOSSES[:-1], b"w", "not a curve of 100 steps"),
        ("weights", LOSSES, b"v", "another curve, or other weights"),
    ],
)
def test_other_curves_and_weights_are_failures(tmp_path, name, losses, weights, said):
    trials = Stubs(tmp_path, "true")
    with pytest.raises(soak.Failure, match=said):
        trials.compare(finished(trials.run(name), losses, weights), [])


def test_a_run_that_trains_again_what_was_saved_is_a_failure(tmp_path):
    """Its curve and weights are the same, but its log has other times."""
    trials = Stubs(tmp_path, "true")
    run = finished(trials.run("cut"), LOSSES, b"w")
    (run / "pretrain" / "checkpoints" / "step-00000042").mkdir(parents=True)
    kept = soak.records_to_keep(run)
    assert [json.loads(line)["step"] for line in kept] == [20, 40]
    with pytest.raises(soak.Failure, match="trained again what was saved"):
        trials.compare(run, [line.replace("0.1", "0.2") for line in kept])
    trials.compare(run, kept)
    assert not run.exists()


@pytest.mark.parametrize("seed", [0, 1])
def test_a_kill_that_comes_too_late_is_a_failure(tmp_path, seed, monkeypatch):
    trials = Stubs(tmp_path, "echo done")
    if seed == 0:  # at start-up: as late as can be
        monkeypatch.setattr(trials, "wait", lambda seed, name, process: process.wait())
    with pytest.raises(soak.Failure, match=r"ended before .*: done"):
        trials.kill(seed, "run")


RANKS = "sleep 60 >/dev/null 2>&1 & sleep 60 >/dev/null 2>&1 & wait -n; kill $(jobs -p); "


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo done", "ended before its ranks were seen: done"),
        (RANKS + "exit 1", "torchrun did not notice"),
        (RANKS + "echo '(exitcode: -9)'; exit 1", "exit status 1 with 1 restarts"),
    ],
)
def test_a_death_without_its_consequences_is_a_failure(tmp_path, script, said):
    with pytest.raises(soak.Failure, match=said):
        Stubs(tmp_path, script, ranks=2).rank_death(0, "run")


def test_what_a_run_has_saved(tmp_path):
    folder = tmp_path / "pretrain" / "checkpoints"
    (folder / "step-00000003.partial").mkdir(parents=True)
    assert soak.saved(tmp_path) == 0
    (folder / "step-00000003").mkdir()
    assert soak.saved(tmp_path) == 3
