"""Where Triton would round float32 products, the ops with products use the reference instead."""

from __future__ import annotations

import importlib
from types import SimpleNamespace

import pytest
import torch

from ivcl_fast.kernels import launch


@pytest.mark.parametrize(
    ("capability", "version", "rounds"),
    [((10, 0), "3.6.0", True), ((10, 0), "3.9.0", False), ((10, 0), "3.10.1", False),
     ((9, 0), "3.6.0", False), ((12, 0), "3.6.0", False)],
)  # fmt: skip
def test_which_chips_round(monkeypatch, capability, version, rounds):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(launch, "triton", SimpleNamespace(__version__=version))
    assert launch.rounds_float32.__wrapped__(torch.device("cuda", 0)) is rounds
    assert launch.rounds_float32.__wrapped__(torch.device("cpu")) is False


@pytest.mark.parametrize("name", ["short_attention", "embed_patches"])
def test_rounding_chips_get_the_reference(monkeypatch, name):
    op = importlib.import_module(f"ivcl_fast.kernels.{name}")
    monkeypatch.setattr(op, "rounds_float32", lambda device: True)
    monkeypatch.setattr(op, "launch", None)  # calling it would fail
    if name == "short_attention":
        inputs = rest = (torch.randn(2, 5, 48), 2)
    else:
        rows = torch.randint(256, (2, 6, 12), dtype=torch.uint8)
        ids = torch.tensor([[0, 2], [1, 5]])
        weights = torch.randn(8, 12), torch.randn(8), torch.randn(6, 8)
        rest = (rows, ids, *weights, 0.5, 0.5)
        inputs = (*rest, torch.float32)
    out = op._forward(*inputs)
    assert torch.equal(out, op._ref(*inputs))
    ours, plain = op._backward(out, *rest), op._ref_backward(out, *rest)
    for a, b in zip(*((x if isinstance(x, tuple) else (x,)) for x in (ours, plain)), strict=True):
        assert torch.equal(a, b)
