"""Every setting reaches the stage that it is for: stages are described here, and not trained."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ivcl_fast import IVCL, IVCLConfig
from ivcl_fast.data.synthetic.cater.write import SyntheticCater, write_cater
from ivcl_fast.training import run as of_run
from ivcl_fast.training.loop import Stage
from ivcl_fast.training.run import Run
from ivcl_fast.training.settings import TrainConfig
from tests.training.test_last_frame import SIZES

Stages = dict[str, Stage]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cater(tmp_path_factory.mktemp("cater"), SyntheticCater(train=6, val=2), 1)


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Stages:
    """The last stage of each name that was started, with all that it was given."""
    started: Stages = {}

    class Described(Stage):
        def run(self) -> None:
            started[self.name] = self

    monkeypatch.setattr(of_run, "Stage", Described)
    return started


@pytest.fixture
def make(data: Path, tmp_path: Path):
    """Make a run with other settings than the default ones, in a folder of its own."""
    runs: list[Run] = []

    def make_run(objective: str = "ivcl", **settings: Any) -> Run:
        plain = dict(
            source=f"cater:{data}", task="localize", model=IVCLConfig(objective=objective, **SIZES),
            device="cpu", batch_size=2, pretrain_clips=8, finetune_clips=4, out=tmp_path,
            name=str(len(runs)), workers=1,
        )  # fmt: skip
        runs.append(Run(TrainConfig().replace(**(plain | settings))))
        runs[-1].folder.mkdir()
        return runs[-1]

    return make_run


@pytest.fixture
def weights(tmp_path: Path) -> str:
    """A model to start from."""
    IVCL(IVCLConfig(**SIZES)).save_pretrained(tmp_path / "weights")
    return str(tmp_path / "weights")


@pytest.mark.parametrize("what", ["weights", "masks", "clips"])
def test_a_seed_decides(what, make, stages):
    def drawn(seed: int) -> list[Tensor]:
        make(seed=seed).pretrain()
        stage = stages["pretrain"]
        if what == "weights":
            return [stage.model.encoder.slot_tokens]
        batches = [batch for epoch in range(4) for batch in stage.loader.epoch(epoch)]
        if what == "clips":
            return [torch.cat([batch.clip_ids for batch in batches])]
        asked: list[Tensor] = []

        def model(rows: Tensor, seed: Tensor) -> SimpleNamespace:
            asked.append(seed)
            return SimpleNamespace(loss=0)

        stage.loss(model, replace(batches[0], clip_ids=torch.arange(2)), 3)
        return asked

    first, second, again = drawn(0), drawn(1), drawn(0)
    assert all(map(torch.equal, first, again))
    assert not any(map(torch.equal, first, second))


def test_a_schedule_has_all_that_was_set(make, stages, weights, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")  # rates count the clips of all ranks
    settings = dict(
        batch_size=4, grad_accum_steps=2, warmup_steps=3, weight_decay=0.1, clip_norm=2.0,
    )  # fmt: skip
    rates = dict(lr=1e-2, finetune_lr=2e-2, lr_scaling="linear", backbone_lr_scale=0.25)
    run = make(**settings, **rates, optimizer="adamw", last_frame_clips=0)
    run.pretrain()
    run.finetune("random")
    run.finetune(weights, "scratch")
    schedules = [stages[name].schedule for name in ("pretrain", "finetune", "scratch")]
    for schedule in schedules:
        assert {name: getattr(schedule, name) for name in settings} == settings
        assert schedule.optimizer == "adamw"
    assert [schedule.clips for schedule in schedules] == [8, 4, 4]
    assert [schedule.lr for schedule in schedules] == [1e-2 / 4, 2e-2 / 4, 2e-2 / 4]
    assert [schedule.backbone_lr_scale for schedule in schedules] == [1, 1, 0.25]
