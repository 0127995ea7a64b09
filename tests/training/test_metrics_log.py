"""The records of training, and the programs that show them."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ivcl_fast.errors import UserError
from ivcl_fast.training.metrics_log import MetricsLog

GIF = b"GIF89a..."


def write_two(folder, viewer: str) -> MetricsLog:
    with MetricsLog(folder, viewer) as log:
        log.write("pretrain", step=20, clips=320, loss=0.5)
        log.write("finetune", step=20, clips=160, val_top1=0.25)
        log.write_films("finetune", 160, {"clip": GIF})
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


class Wandb(ModuleType):
    """Stands for the package and for a run of it, and notes all calls."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.calls: list = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args, **kwargs):
            self.calls.append((name, args, kwargs))
            return self

        return call


@pytest.fixture
def wandb(monkeypatch) -> Wandb:
    package = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", package)
    return package


def test_weights_and_biases(wandb, tmp_path):
    write_two(tmp_path, "wandb")
    names = [name for name, _, _ in wandb.calls]
    assert names == ["init", *["define_metric", "log"] * 2, "Video", "log", "finish"]
    assert wandb.calls[0][2]["project"] == "ivcl_fast" and wandb.calls[-1][1] == (0,)
    assert wandb.calls[2][1] == ({"pretrain/loss": 0.5, "pretrain/clips": 320},)
    assert wandb.calls[3][1:] == (("finetune/*",), {"step_metric": "finetune/clips"})
    assert wandb.calls[5][1][0].getvalue() == GIF


def test_a_missing_package_is_one_line_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match="--viewer: expected tensorboard, none, or wandb"):
        MetricsLog(tmp_path, "wandb")
    assert not list(tmp_path.iterdir())
