"""The records of training, and the programs that show them."""

from __future__ import annotations

import sys
from unittest.mock import MagicMock

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ivcl_fast.errors import UserError
from ivcl_fast.training.metrics_log import MetricsLog

GIF = b"GIF89a..."


def write_two(folder, viewer: str) -> MetricsLog:
    with MetricsLog(folder, viewer) as log:
        log.write("pretrain", step=20, clips=320, loss=0.5)
        log.write("finetune", step=20, clips=160, val_top1=0.25)
        log.show("finetune", 160, {"clip": GIF})
    assert [r["clips"] for r in log.read()] == [320, 160]
    return log


def test_a_line_that_a_kill_left_unfinished_is_dropped(tmp_path):
    log = MetricsLog(tmp_path, "none")
    for step in (3, 6):
        log.write("toy", step, 4 * step, loss=1.0)
    with log.path.open("a") as file:
        file.write('{"stage": "to')
    assert [r["step"] for r in log.read()] == [3, 6]
    log.rewind("toy", 3)
    assert [r["step"] for r in log.read()] == [3]
    log.path.write_text("text\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl: expected records"):
        log.read()


def test_tensorboard_reads_what_was_written(tmp_path):
    write_two(tmp_path, "tensorboard")
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    points = [(p.step, p.value) for p in found.Scalars("pretrain/loss")]
    assert points == [(320, 0.5)] and len(found.Scalars("finetune/val_top1")) == 1
    (film,) = found.Images("finetune/clip")
    assert film.encoded_image_string == GIF and film.step == 160


def test_weights_and_biases(tmp_path, monkeypatch):
    wandb = MagicMock()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    write_two(tmp_path, "wandb")
    assert wandb.init.call_args.kwargs["project"] == "ivcl_fast"
    run = wandb.init.return_value
    run.define_metric.assert_called_with("finetune/*", step_metric="finetune/clips")
    assert run.log.call_args_list[0].args == ({"pretrain/loss": 0.5, "pretrain/clips": 320},)
    assert wandb.Video.call_args.args[0].getvalue() == GIF
    run.finish.assert_called_once_with(0)


def test_a_missing_package_is_one_line_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="--viewer: expected tensorboard, none, or wandb"):
        MetricsLog(tmp_path, "wandb")
    assert not list(tmp_path.iterdir())
