"""The records of training: flushed before a checkpoint, and readable after a kill."""

from __future__ import annotations

import pytest

from ivcl_fast.errors import UserError
from ivcl_fast.training.metrics_log import MetricsLog


def test_a_line_that_a_kill_left_unfinished_is_dropped(tmp_path):
    log = MetricsLog(tmp_path, "none")
    for step in (3, 6):
        log.write("toy", step, 4 * step, loss=1.0)
    with log.path.open("a") as file:
        file.write('{"stage": "to')
    assert [r["step"] for r in log.read()] == [3, 6]
    log.rewind("toy", 3)
    assert [r["step"] for r in log.read()] == [3]
    log.path.write_text("null\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 1: "):
        log.read()


def test_the_scores_of_a_stage_are_its_last_ones(tmp_path):
    log = MetricsLog(tmp_path, "none")
    for step, score in ((3, 0.25), (6, 0.123456)):
        log.write("toy", step, 4 * step, loss=1.0)
        log.write("toy", step, 4 * step, val_top1=score, val_l1=2.0)
    log.write("other", 3, 12, val_top1=0.75)
    assert log.last_scores("toy") == {"top1": 0.1235, "l1": 2.0}
    assert log.last_scores("none") == {}
