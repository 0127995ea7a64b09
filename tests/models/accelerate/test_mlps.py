"""accelerate and MLPs: kinds of GELU, and gated ones."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from timm.layers import GluMlp, Mlp, SwiGLU, SwiGLUPacked
from timm.layers.activations import GELUTanh, QuickGELU
from torch import nn

from ivcl_fast import accelerate, kernels
from ivcl_fast.models.accelerate.adapters.mlp import gelu_kind
from tests.models.accelerate.test_accelerate import close
from tests.support.marks import needs_kernels

pytestmark = needs_kernels


class NewGELU(nn.Module):
    """As models of Hugging Face have it."""

    def forward(self, x):
        return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


class SlowGELU(nn.Module):
    """Not quite QuickGELU."""

    def forward(self, x):
        return x * torch.sigmoid(1.7 * x)


@pytest.mark.parametrize(
    ("act", "kind"),
    [
        (nn.GELU(), "none"), (nn.GELU("tanh"), "tanh"), (GELUTanh(), "tanh"), (NewGELU(), "tanh"),
        (QuickGELU(), "quick"), (SlowGELU(), None), (nn.PReLU(), None), (nn.SiLU(), None),
        (nn.Bilinear(2, 2, 2), None), (nn.Softmax(-1), None), (nn.RReLU().train(), None),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else value,
)  # fmt: skip
def test_kinds_of_gelu(act, kind, monkeypatch):
    """Known by their values. Each is fused as what it is, in an MLP and in a Sequential."""
    state = torch.get_rng_state()
    assert gelu_kind(act) == kind
    assert torch.equal(torch.get_rng_state(), state)
    if kind is None:
        return
    used, bias_gelu = [], kernels.bias_gelu
    monkeypatch.setattr(kernels, "bias_gelu", lambda *a: used.append(a[2]) or bias_gelu(*a))
    mlp = Mlp(32, 64, act_layer=lambda: act)
    sequence = nn.Sequential(nn.Linear(32, 64), act, nn.Linear(64, 32))
    for plain in (mlp, sequence):
        fast = copy.deepcopy(plain)
        assert "" in accelerate(fast).replaced
        used.clear()
        x = torch.randn(2, 17, 32)
        close(fast(x), plain(x))
        assert {*used} == {kind}


@pytest.mark.parametrize(
    ("build", "names"),
    [
        (SwiGLU, ("w1", "w2", "w3")),
        (SwiGLU, ("gate_proj", "up_proj", "down_proj")),
        (SwiGLUPacked, ("fc1", None, "fc2")),
        (SwiGLUPacked, ("w12", None, "w3")),
        (partial(SwiGLU, norm_layer=nn.LayerNorm), None),
        (partial(GluMlp, act_layer=nn.SiLU), "it computes something else"),
        (partial(GluMlp, act_layer=nn.Sigmoid), "act (Sigmoid): only SiLU"),
        (partial(SwiGLUPacked, act_layer=nn.GELU), "act (GELU): only SiLU"),
        (partial(SwiGLU, bias=False), "fc1_g: it has no bias"),
    ],
)
def test_gated_mlps(build, names):
    """timm's, by its own names of the layers and by those of others; a reason where it is kept."""
    torch.manual_seed(0)
    plain = build(32, 48)
    if isinstance(names, tuple):
        plain = renamed(plain, names)
    fast, x = copy.deepcopy(plain), torch.randn(2, 17, 32)
    report = accelerate(fast)
    if isinstance(names, str):
        assert names in report.kept[""]
        return
    assert report.fused_calls[""] >= 1 and "" in report.replaced
    before = kernels.dispatches()
    outputs = [part(x.requires_grad_()) for part in (fast, plain)]
    assert {op for op, _ in kernels.dispatches() - before} >= {"bias_swiglu"}
    close(*outputs)
    for ours, theirs in zip(*(grads(y, [x]) for y in outputs), strict=True):
        close(ours, theirs)
    fast.act = nn.Sigmoid()  # noticed
    assert not torch.allclose(fast(x), outputs[1], atol=1e-3)


def grads(y, inputs):
    return torch.autograd.grad(y.square().sum(), inputs)


def renamed(mlp, names):
    """The same gated MLP with other names of its layers."""
    packed = names[1] is None
    own = ("fc1", None, "fc2") if packed else ("fc1_g", "fc1_x", "fc2")

    class Renamed(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.SiLU()
            for old, new in zip(own, names, strict=True):
                if new is not None:
                    setattr(self, new, getattr(mlp, old))

        def forward(self, x):
            parts = [getattr(self, name) for name in names if name is not None]
            halves = parts[0](x).chunk(2, -1) if packed else (parts[0](x), parts[1](x))
            return parts[-1](self.act(halves[0]) * halves[1])

    return Renamed()
