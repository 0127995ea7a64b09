"""Learning rates, parameter groups and Muon."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ivcl_fast import IVCL, IVCLConfig
from ivcl_fast.training.optim import Muon, Schedule, make_optimizers, scaled_lr, set_lr


def test_schedule_warms_up_and_ends_near_zero():
    schedule = Schedule(clips=16_000, lr=1.0, batch_size=16, warmup_steps=100)
    rates = [schedule.lr_at(step) for step in range(schedule.steps)]
    assert schedule.steps == 1000
    assert rates[0] == 0.01 and max(rates) == 1.0 and rates.index(1.0) in (99, 100)
    assert rates[-1] < 1e-4 and sorted(rates[100:], reverse=True) == rates[100:]


@pytest.mark.parametrize(("rule", "rate"), [("none", 1.0), ("sqrt", 2.0), ("linear", 4.0)])
def test_rates_scale_with_the_batch(rule, rate):
    assert scaled_lr(1.0, 64, rule) == rate and scaled_lr(1.0, 16, rule) == 1.0


def test_weight_decay_and_rates_by_group():
    model = nn.ModuleDict({"body": nn.Linear(6, 8), "head": nn.Linear(8, 3)})
    (adamw,) = make_optimizers(model, Schedule(1, weight_decay=0.1, backbone_lr_scale=0.5))
    found = {(g["weight_decay"], g["scale"]): len(g["params"]) for g in adamw.param_groups}
    assert found == {(0.1, 0.5): 1, (0.0, 0.5): 1, (0.1, 1.0): 1, (0.0, 1.0): 1}


def test_muon_takes_the_matrices_of_blocks_only():
    model = IVCL(IVCLConfig(depth=1, temporal_depth=1, decoder_depth=1))
    adamw, muon = make_optimizers(model, Schedule(1, optimizer="muon"))
    names = {p: n for n, p in model.named_parameters()}
    taken = [names[p] for group in muon.param_groups for p in group["params"]]
    others = [names[p] for group in adamw.param_groups for p in group["params"]]
    assert len(taken) == 3 * 4 and all(".blocks.0." in n and n.endswith("weight") for n in taken)
    assert sorted(taken + others) == sorted(names.values())


def test_learning_rates_are_tensors_that_stay():
    model = IVCL(IVCLConfig(depth=1, temporal_depth=1, decoder_depth=1))
    optimizers = make_optimizers(model, Schedule(1, optimizer="muon"), capturable=True)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    rates = [group["lr"] for group in groups]
    groups[0]["scale"] = 0.5
    set_lr(optimizers, 0.25)
    assert all(group["lr"] is rate for group, rate in zip(groups, rates, strict=True))
    assert [rate.item() for rate in rates] == [0.125] + [0.25] * (len(rates) - 1)
    assert len({rate.data_ptr() for rate in rates}) == len(rates)


@pytest.mark.parametrize("shape", [(6, 6), (12, 5), (5, 12), (1, 6)])
def test_muon_is_that_of_torch(shape):
    """Bit for bit; with a tensor as learning rate, for CUDA graphs, up to rounding."""
    torch.manual_seed(0)
    start, gradients = torch.randn(shape), torch.randn(5, *shape)
    ends = []
    for muon, lr in ((torch.optim.Muon, 0.02), (Muon, 0.02), (Muon, torch.tensor(0.02))):
        weight = torch.nn.Parameter(start.clone())
        options = dict(lr=lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        optimizer = muon([{"params": [weight], **options}], adjust_lr_fn="match_rms_adamw")
        for gradient in gradients:
            weight.grad = gradient.clone()
            optimizer.step()
        ends.append(weight.detach())
    assert torch.equal(ends[0], ends[1])
    torch.testing.assert_close(ends[0], ends[2], rtol=1e-6, atol=1e-7)
