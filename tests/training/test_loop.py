"""The training loop on a toy model and loader: exact resume, stops, broken numbers."""

from __future__ import annotations

import errno
import itertools
import math
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ivcl_fast.errors import UserError
from ivcl_fast.training import checkpoint, loop
from ivcl_fast.training.loop import Stage
from ivcl_fast.training.metrics_log import MetricsLog
from tests.support.toy_stage import Killed, ToyLoader, curve, make_toy_stage

BATCH = 4


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(6, 8)])})
        self.head = nn.Linear(8, 3)

    def forward(self, rows):
        return self.head(self.body["blocks"][0](rows.float().flatten(1) / 255).relu())


def toy_loss(model, batch, step):
    return nn.functional.cross_entropy(model(batch.rows), batch.labels)


def stage(folder: Path, loss=toy_loss, grad_accum_steps=1, optimizer="muon", **options) -> Stage:
    torch.manual_seed(3)
    schedule = dict(clips=100, lr=1e-2, batch_size=BATCH, warmup_steps=2, optimizer=optimizer)
    schedule |= dict(grad_accum_steps=grad_accum_steps)
    options = {"log": 3, "save": 5} | options
    return make_toy_stage(folder, Toy(), ToyLoader(10, BATCH, 1, 2, 3), loss, schedule, **options)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def killed_at(moment):
    def loss(model, batch, step):
        if step == moment:
            raise Killed
        return toy_loss(model, batch, step)

    return loss


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("step", [0, 5, 19])
def test_killed_and_resumed_is_the_same_run(tmp_path, step, optimizer):
    whole = stage(tmp_path / "whole", optimizer=optimizer)
    whole.run()
    with pytest.raises(Killed):
        stage(tmp_path / "cut", killed_at(step), optimizer=optimizer).run()
    resumed = stage(tmp_path / "cut", optimizer=optimizer)
    resumed.run()
    assert same(whole.model, resumed.model)
    assert curve(tmp_path / "whole") == curve(tmp_path / "cut")
    assert [s for s, _ in curve(tmp_path / "cut")] == [3, 6, 9, 12, 15, 18, 21, 24, 25]


def test_the_log_has_the_shares_of_waiting_and_of_the_peak(tmp_path, monkeypatch):
    """A quarter of a second for each batch, and a second for each record."""

    class Waiting(ToyLoader):
        def epoch(self, epoch, start_batch=0):
            for batch in super().epoch(epoch, start_batch):
                self.wait_seconds += 0.25
                yield batch

    run = stage(tmp_path, peak_clips_per_second=10 * BATCH)
    run.loader = Waiting(10, BATCH, 1, 2, 3)
    monkeypatch.setattr(time, "perf_counter", itertools.count().__next__)
    run.run()
    records = MetricsLog(tmp_path).read()
    assert [r["data_wait"] for r in records] == [0.75] * 8 + [0.25]
    assert [r["mfu"] for r in records] == pytest.approx([0.3] * 8 + [0.1])


def test_checkpoints_are_minutes_apart_and_one_is_of_the_end(tmp_path, monkeypatch):
    """Here every look at the clock is half a minute after the last."""
    clock = SimpleNamespace(monotonic=itertools.count(0, 30).__next__, perf_counter=time.time)
    monkeypatch.setattr(loop, "time", clock)
    options = dict(save=1000, save_minutes=2)
    with pytest.raises(Killed):
        stage(tmp_path, killed_at(11), **options).run()
    folder = tmp_path / "checkpoints"
    assert [p.name for p in checkpoint.list_steps(folder)] == ["step-00000004", "step-00000008"]
    stage(tmp_path, **options).run()
    assert checkpoint.list_steps(folder)[-1].name == "step-00000025"


def test_training_goes_on_without_a_checkpoint(tmp_path, monkeypatch, caplog):
    def full(folder, saved):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "store", full)
    stage(tmp_path).run()
    assert caplog.messages[0].startswith("toy: no checkpoint of step 5 could be written: ")


@pytest.mark.parametrize("where, kept", [("loss", 10), ("gradient", 5)])
def test_a_step_that_is_not_finite_never_reaches_a_checkpoint(tmp_path, where, kept):
    """The checkpoint of step 10 would be the first with weights of the broken gradient."""

    def loss(model, batch, step):
        value = toy_loss(model, batch, step)
        if where == "gradient" and step == 9:
            value.register_hook(lambda gradient: gradient * math.nan)
        return value * math.nan if where == "loss" and step >= 12 else value

    with pytest.raises(UserError, match="toy: the loss or a gradient became nan"):
        stage(tmp_path / "nan", loss).run()
    saved = checkpoint.latest(tmp_path / "nan" / "checkpoints")
    assert saved is not None and saved.step == kept
    assert all(torch.isfinite(t).all() for t in saved.model.values())


@pytest.mark.parametrize("grad_accum_steps, optimizer", [(2, "muon"), (3, "adamw")])
def test_accumulation_gives_the_same_step(tmp_path, grad_accum_steps, optimizer):
    """Three parts of four clips are not equal: two, one and one."""
    whole = stage(tmp_path / "whole", optimizer=optimizer)
    parts = stage(tmp_path / "parts", grad_accum_steps=grad_accum_steps, optimizer=optimizer)
    whole.run()
    parts.run()
    for expected, found in zip(curve(tmp_path / "whole"), curve(tmp_path / "parts"), strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
    for x, y in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("validations, steps", [(2, [12, 25]), (3, [9, 18, 25])])
def test_validation_runs_at_even_spaces_and_at_the_end(tmp_path, validations, steps):
    """It is of the model as it is used, and training goes on as before."""
    modes = {"train": [], "validate": []}

    def loss(model, batch, step):
        modes["train"].append(model.training)
        return toy_loss(model, batch, step)

    def validate():
        modes["validate"].append(run.model.training)
        return {"val_top1": 0.5}

    run = stage(tmp_path / "v", loss, validate=validate, validations=validations)
    run.model.eval()
    run.run()
    records = MetricsLog(tmp_path / "v").read()
    measured = [(r["step"], r["clips"]) for r in records if "val_top1" in r]
    assert measured == [(step, step * BATCH) for step in steps]
    assert modes == {"train": [True] * 25, "validate": [False] * len(steps)}


def test_every_step_has_its_rate_and_its_clipped_gradient(tmp_path):
    """And the log has the mean loss of the steps since the record before."""
    steps, losses = [], []

    def loss(model, batch, step):
        losses.append(toy_loss(model, batch, step))
        return losses[-1]

    def record(optimizer, args, kwargs):
        (group, *_) = optimizer.param_groups
        gradients = [p.grad for g in optimizer.param_groups for p in g["params"]]
        steps.append((group["lr"], torch.nn.utils.get_total_norm(gradients).item()))

    run = stage(tmp_path, loss, optimizer="adamw")
    run.schedule = replace(run.schedule, clip_norm=1e-3)
    hook = register_optimizer_step_pre_hook(record)
    try:
        run.run()
    finally:
        hook.remove()
    rates, norms = zip(*steps, strict=True)
    assert rates == tuple(run.schedule.lr_at(step) for step in range(25))
    assert norms == pytest.approx([1e-3] * 25, rel=1e-2)
    logged = {r["step"]: r["lr"] for r in MetricsLog(tmp_path).read()}
    assert logged == {step: rates[step - 1] for step in (3, 6, 9, 12, 15, 18, 21, 24, 25)}
    means = [torch.stack(losses[i : i + 3]).mean().item() for i in range(0, 25, 3)]
    assert [loss for _, loss in curve(tmp_path)] == pytest.approx(means)
