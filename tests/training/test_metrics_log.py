"""The records of training: on the disk before a checkpoint, and readable after any kill."""

from __future__ import annotations

import json

import pytest

from ivcl_fast.manifest import Manifest
from ivcl_fast.training import checkpoint, metrics_log
from ivcl_fast.training.metrics_log import MetricsLog
from tests.support.toy_stage import Killed
from tests.training.test_loop import stage


def test_no_checkpoint_is_newer_than_the_records_that_are_flushed(tmp_path, monkeypatch):
    """After a power cut, the curve would have a hole that no resume fills."""
    write, steps = checkpoint.write, {}

    def noted(final, saved):
        size, _ = Manifest.read(tmp_path).files["metrics.jsonl"]
        flushed = (tmp_path / "metrics.jsonl").read_bytes()[:size].splitlines()
        steps[saved.step] = [json.loads(line)["step"] for line in flushed]
        write(final, saved)

    monkeypatch.setattr(checkpoint, "write", noted)
    stage(tmp_path).run()
    assert list(steps) == [5, 10, 15, 20, 25]
    for saved, flushed in steps.items():
        assert {step for step in (*range(3, 25, 3), 25) if step <= saved} <= set(flushed)


@pytest.mark.parametrize("killed_at", ["write_text", "record"])
def test_a_kill_while_records_are_dropped_leaves_a_run_that_goes_on(
    tmp_path, monkeypatch, killed_at
):
    log = MetricsLog(tmp_path, "none")
    for step in (3, 6):
        log.write("toy", step, 4 * step, loss=1.0)
    log.sync()

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(metrics_log, killed_at, killed)
        log.rewind("toy", 3)
    again = MetricsLog(tmp_path, "none")
    again.rewind("toy", 3)
    assert [r["step"] for r in again.read()] == [3]


def test_the_scores_of_a_stage_are_its_last_ones(tmp_path):
    log = MetricsLog(tmp_path, "none")
    for step, score in ((3, 0.25), (6, 0.123456)):
        log.write("toy", step, 4 * step, loss=1.0)
        log.write("toy", step, 4 * step, val_top1=score, val_l1=2.0)
    log.write("other", 3, 12, val_top1=0.75)
    assert log.last_scores("toy") == {"top1": 0.1235, "l1": 2.0}
    assert log.last_scores("none") == {}
