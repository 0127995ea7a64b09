"""The reference's models, and its parts, become those of the fast model, and back."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

import ivcl_fast
from ivcl_fast import IVCLConfig, accelerate, reference, restore, slot_autoencoder, supervised
from tests.models.test_model import SEED, SIZES, video

CFG = IVCLConfig.preset("tiny", **SIZES | {"depth": 1})


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_the_reference_becomes_the_fast_model_and_back(caplog):
    plain, other = reference.IVCL(CFG), reference.IVCL(CFG)
    before = {name: type(part) for name, part in plain.named_modules()}
    state, values = dict(plain.__dict__), {k: v.clone() for k, v in plain.state_dict().items()}
    expected = plain(video(), seed=SEED)

    report = accelerate(plain)
    assert type(plain) is ivcl_fast.IVCL
    assert not report.kept
    assert report.replaced[""] == "IVCL" and report.replaced["encoder.blocks.0.attn"] == "Attention"
    close(plain(video(), seed=SEED).pred, expected.pred)
    assert plain.state_dict().keys() == values.keys()
    assert all(torch.equal(v, values[k]) for k, v in plain.state_dict().items())
    assert {name: type(part) for name, part in other.named_modules()} == before
    assert accelerate(plain).replaced == {}  # nothing left to do

    restore(plain)
    assert {name: type(part) for name, part in plain.named_modules()} == before
    assert plain.__dict__.keys() == state.keys()
    assert all("attention_backend" not in part.__dict__ for part in plain.modules())
    assert torch.equal(plain(video(), seed=SEED).pred, expected.pred)
    assert caplog.messages == []


def scaled(out):
    """What a model's part returns, times 1.5."""
    if isinstance(out, tuple):
        return tuple(map(scaled, out))
    return 1.5 * out if isinstance(out, torch.Tensor) else out


@pytest.mark.parametrize(
    ("build", "objective"),
    [
        (reference.IVCL, "ivcl"),
        (reference.IVCLClassifier, "ivcl"),
        (reference.IVCLClassifier, "slot_attention"),
        (slot_autoencoder.SlotAutoencoder, "slot_attention"),
        (lambda cfg: supervised.Supervised(cfg, 3), "classification"),
    ],
)
def test_hooks_on_parts_of_the_reference_stay(build, objective):
    torch.manual_seed(0)
    plain = build(dataclasses.replace(CFG, objective=objective, depth=2))
    call = {"seed": SEED} if build is reference.IVCL else {}
    for name, part in plain.named_modules():
        if name:
            fast = copy.deepcopy(plain)
            accelerate(fast)
            handles = [
                p.register_forward_hook(lambda part, args, out: scaled(out))
                for p in (part, fast.get_submodule(name))
            ]
            outs = [model(video(), **call) for model in (fast, plain)]
            close(*(out if isinstance(out, torch.Tensor) else out.pred for out in outs))
            handles[0].remove()
