"""Learning rates, parameter groups and Muon."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim import _muon

from ivcl_fast import IVCL, IVCLConfig, SlotAutoencoder
from ivcl_fast.training.muon import Muon, orthogonalize
from ivcl_fast.training.optim import Schedule, make_optimizers, scaled_lr


def test_schedule_warms_up_and_ends_near_zero():
    schedule = Schedule(clips=16_000, lr=1.0, batch_size=16, warmup_steps=100)
    rates = [schedule.lr_at(step) for step in range(schedule.steps)]
    assert schedule.steps == 1000
    assert rates[0] == 0.01 and max(rates) == 1.0 and rates.index(1.0) in (99, 100)
    assert rates[-1] < 1e-4 and sorted(rates[100:], reverse=True) == rates[100:]


def test_a_short_stage_warms_up_for_a_tenth_of_it():
    schedule = Schedule(clips=330, lr=1.0, batch_size=16, warmup_steps=100)  # rounded down
    assert schedule.steps == 20
    assert [schedule.lr_at(step) for step in (0, 1, 2)] == [0.5, 1.0, 1.0]
    assert Schedule(clips=3, batch_size=16).steps == 1


@pytest.mark.parametrize(("rule", "rate"), [("none", 1.0), ("sqrt", 2.0), ("linear", 4.0)])
def test_rates_scale_with_the_batch(rule, rate):
    assert scaled_lr(1.0, 64, rule) == rate and scaled_lr(1.0, 16, rule) == 1.0


def test_weight_decay_and_rates_by_group():
    model = nn.ModuleDict({"body": nn.Linear(6, 8), "head": nn.Linear(8, 3)})
    (adamw,) = make_optimizers(model, Schedule(1, weight_decay=0.1, backbone_lr_scale=0.5))
    found = {(g["weight_decay"], g["scale"]): len(g["params"]) for g in adamw.param_groups}
    assert found == {(0.1, 0.5): 1, (0.0, 0.5): 1, (0.1, 1.0): 1, (0.0, 1.0): 1}
    assert {g["betas"] for g in adamw.param_groups} == {(0.9, 0.95)}


def test_positions_and_tokens_do_not_decay():
    """They are matrices, unlike what else does not: biases and norms."""
    model = IVCL(IVCLConfig(depth=1, temporal_depth=1, decoder_depth=1))
    (adamw,) = make_optimizers(model, Schedule(1))
    names = {p: n for n, p in model.named_parameters()}
    kept = [p for g in adamw.param_groups if not g["weight_decay"] for p in g["params"]]
    matrices = {names[p].split(".")[-1] for p in kept if p.ndim > 1}
    assert matrices == {n.split(".")[-1] for n in names.values()} - {"weight", "bias"}


def taken_by(optimizer, model):
    names = {p: n for n, p in model.named_parameters()}
    return [names[p] for group in optimizer.param_groups for p in group["params"]]


def test_muon_takes_the_matrices_of_blocks_only():
    model = IVCL(IVCLConfig(depth=1, temporal_depth=1, decoder_depth=1))
    adamw, muon = make_optimizers(model, Schedule(1, optimizer="muon"))
    taken, others = taken_by(muon, model), taken_by(adamw, model)
    assert len(taken) == 3 * 4 and all(".blocks.0." in n and n.endswith("weight") for n in taken)
    assert sorted(taken + others) == sorted(n for n, _ in model.named_parameters())


def test_muon_takes_all_matrices_between_hidden_layers_of_slot_attention():
    model = SlotAutoencoder(IVCLConfig(objective="slot_attention", depth=1, decoder_depth=2))
    adamw, muon = make_optimizers(model, Schedule(1, optimizer="muon"))
    taken, others = taken_by(muon, model), taken_by(adamw, model)
    assert sorted(taken + others) == sorted(n for n, _ in model.named_parameters())
    assert sum(".slot_attention." in n for n in taken) == 9 and "decoder.layers.0.weight" in taken
    matrices = {n for n, p in model.named_parameters() if p.ndim > 1 and n in others}
    assert matrices == {
        *("encoder.patch_embed.proj.weight", "decoder.embed.weight", "decoder.pred.weight"),
        *("encoder.pos_embed", "encoder.slot_tokens", "decoder.background"),
        *(f"decoder.{name}.weight" for name in ("row", "column", "change")),
        *(f"decoder.scene.{place}.weight" for place in (0, 2, 3)),
    }


SHAPES = [(6, 6), (12, 5), (5, 12), (1, 6), (12, 5), (5, 12), (5, 12), (6, 6), (64, 96)]


def after_steps(optimizer, lr, steps=5):
    """The weights of all shapes after some steps with the same gradients."""
    draw = torch.Generator().manual_seed(0)
    weights = [nn.Parameter(torch.randn(shape, generator=draw)) for shape in SHAPES]
    options = dict(lr=lr, weight_decay=0.1)
    muon = optimizer([{"params": weights, **options}], adjust_lr_fn="match_rms_adamw")
    for _ in range(steps):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=draw)
        muon.step()
    return weights, muon


@pytest.fixture
def has_bf16(monkeypatch):
    """Run Muon as on a device with hardware for bfloat16, or without (``choose(False)``)."""

    def choose(answer: bool) -> None:
        monkeypatch.setattr("ivcl_fast.training.muon.has_fast_bf16", lambda device: answer)

    choose(True)
    return choose


@pytest.mark.parametrize("per_batch", [1, 130], ids="CPU_BATCH={}".format)
def test_muon_is_that_of_torch(per_batch, has_bf16, monkeypatch):
    """Bit for bit; with a tensor as learning rate, for CUDA graphs, up to rounding."""
    monkeypatch.setattr("ivcl_fast.training.muon.CPU_BATCH", per_batch)
    expected, _ = after_steps(torch.optim.Muon, 0.02)
    for lr, tolerance in ((0.02, 0.0), (torch.tensor(0.02), 1e-6)):
        found, _ = after_steps(Muon, lr)
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


NEWTON_SCHULZ = (_muon.DEFAULT_A, _muon.DEFAULT_B, _muon.DEFAULT_C), 5, _muon.EPS


def test_without_hardware_for_bfloat16_the_iteration_is_in_float32(has_bf16):
    """There, products of bfloat16 take thirty times as long as those of float32."""
    torch.manual_seed(0)
    stacks = [torch.randn(2, *shape).bfloat16() for shape in ((3, 8), (8, 3), (4, 4), (64, 96))]
    errors = {}
    for answer in (True, False):
        has_bf16(answer)
        found = [orthogonalize(stack, *NEWTON_SCHULZ, 130) for stack in stacks]
        errors[answer] = max(
            (ours[i] - exact_newton_schulz(stack[i])).abs().max().item()
            for ours, stack in zip(found, stacks, strict=True)
            for i in range(2)
        )
        assert all(x.dtype == torch.bfloat16 for x in found)
    assert errors[False] < 2**-8 < errors[True], "half an ulp of bfloat16 near 1"


def exact_newton_schulz(matrix):
    """The iteration in float64."""
    (a, b, c), steps, eps = NEWTON_SCHULZ
    x = matrix.double()
    x = x / x.norm().clamp_min(eps)
    for _ in range(steps):
        gram = x @ x.T if len(x) <= len(x.T) else x.T @ x
        polynomial = b * gram + c * gram @ gram
        x = a * x + (polynomial @ x if len(x) <= len(x.T) else x @ polynomial)
    return x
