"""An accelerated module after changes to its parts computes what the plain one computes."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from ivcl_fast import accelerate, restore
from ivcl_fast.kernels import dispatches
from ivcl_fast.models.accelerate import tune
from ivcl_fast.models.accelerate.swap import ALWAYS, PROOF
from tests.support.marks import needs_kernels

pytestmark = needs_kernels


class Lora(nn.Module):
    """An adapter around a linear layer, as peft builds it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer, self.weight, self.bias = base, base.weight, base.bias
        self.a = nn.Linear(base.in_features, 2, bias=False)
        self.b = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x):
        return self.base_layer(x) + self.b(self.a(x))


def add_lora(block):
    for parent, name in ((block.mlp, "fc1"), (block.mlp, "fc2"), (block.attn, "qkv")):
        setattr(parent, name, Lora(getattr(parent, name)))


def add_hooks(block):
    for part in (block.norm1, block.norm2, block.mlp.fc1, block.mlp.act, block.attn.proj):
        part.register_forward_hook(lambda module, args, out: 1.5 * out)


def prune_fc1(block):
    prune.l1_unstructured(block.mlp.fc1, "weight", 0.5)


def add_weight_norm(block):
    parametrizations.weight_norm(block.mlp.fc1)
    parametrizations.weight_norm(block.attn.qkv)
    block.mlp.fc1.parametrizations.weight.original0.data.mul_(2)


def activate_dropouts(block):
    for part in block.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.4


def change_parts(block):
    block.mlp.act = nn.SiLU()
    block.ls1 = nn.Dropout(0.5)
    block.drop_path2 = nn.Tanh()
    block.attn.q_norm = nn.LayerNorm(8)


def change_settings(block):
    block.norm2.eps = 0.5
    block.mlp.act.approximate = "tanh"
    block.attn.num_heads, block.attn.head_dim = 2, 16
    block.attn.scale = 16**-0.5


def set_forward(block):
    fc1 = block.mlp.fc1
    fc1.forward = lambda x: 2 * F.linear(x, fc1.weight, fc1.bias)


CHANGES = (
    add_lora, add_hooks, prune_fc1, add_weight_norm, activate_dropouts, change_parts,
    change_settings, set_forward,
)  # fmt: skip


def step(block):
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    torch.manual_seed(0)
    out = block(x)
    out.square().sum().backward()
    return [out, x.grad, *(p.grad for p in block.parameters())]


@pytest.mark.parametrize("explicit", [False, True], ids=["sdpa", "softmax"])
@pytest.mark.parametrize("change", CHANGES)
def test_changes_afterwards_take_effect(change, explicit):
    torch.manual_seed(0)
    plain = Block(32, 4, qkv_bias=True)
    plain.attn.fused_attn = not explicit
    fast = copy.deepcopy(plain)
    assert len(accelerate(fast).replaced) == 3
    unchanged = fast(torch.ones(1, 3, 32))
    for block in (plain, fast):
        torch.manual_seed(1)
        change(block)
    for ours, theirs in zip(step(fast), step(plain), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(fast(torch.ones(1, 3, 32)), unchanged)


def test_only_attention_inside_a_modules_own_forward():
    class Rotated(nn.Module):
        """Attention with positions that only its own code knows."""

        def __init__(self):
            super().__init__()
            self.all, self.out = nn.Linear(32, 96), nn.Linear(32, 32)

        def forward(self, x, attn_mask=None):
            q, k, v = self.all(x).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
            angle = torch.arange(x.shape[1], dtype=x.dtype)[:, None]
            q, k = q * angle.cos(), k * angle.cos()
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask)
            return self.out(y.transpose(1, 2).flatten(2))

    torch.manual_seed(0)
    plain = Rotated()
    fast = copy.deepcopy(plain)
    assert accelerate(fast).fused_calls == {"": 1}
    x = torch.randn(2, 9, 32)
    before = dispatches()
    ours = fast(x)
    assert (dispatches() - before).total() == 1
    torch.testing.assert_close(ours, plain(x), atol=1e-6, rtol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):  # the angles widen q and k, but not v
        before = dispatches()
        torch.testing.assert_close(fast(x), plain(x), atol=1e-2, rtol=2e-2)
        assert (dispatches() - before).total() == 1
    mask = torch.ones(9, 9, dtype=torch.bool).tril()
    before = dispatches()
    torch.testing.assert_close(fast(x, mask), plain(x, mask))
    assert dispatches() == before


def test_multihead_attention():
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(32, 4, batch_first=True)
    fast = copy.deepcopy(plain)
    assert accelerate(fast).fused_calls == {"": 1}
    x, other = torch.randn(2, 2, 9, 32)
    for arguments in (
        ((x, x, x), {"need_weights": False}),
        ((x, x, x), {}),
        ((x, other, other), {"need_weights": False}),
        ((x, x, x), {"need_weights": False, "attn_mask": torch.ones(9, 9).tril() == 0}),
    ):
        for ours, theirs in zip(fast(*arguments[0], **arguments[1]),
                                plain(*arguments[0], **arguments[1]), strict=True):  # fmt: skip
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_restoring_keeps_a_class_that_changed_since():
    """A parametrisation's is gone when that is removed; then the module has its own again."""

    class Doubled(nn.Module):
        def forward(self, weight):
            return 2 * weight

    plain = nn.MultiheadAttention(32, 4, batch_first=True)
    fast, x = copy.deepcopy(plain), torch.randn(2, 9, 32)
    assert accelerate(fast).replaced
    for part in (plain, fast):
        parametrize.register_parametrization(part, "in_proj_weight", Doubled())
    restore(fast)
    assert torch.equal(fast(x, x, x)[0], plain(x, x, x)[0])
    parametrize.remove_parametrizations(fast, "in_proj_weight")
    restore(fast)
    assert type(fast) is nn.MultiheadAttention
    assert torch.equal(fast(x, x, x)[0], plain(x, x, x)[0])


def test_a_module_that_cannot_be_copied_does_not_stop_the_others():
    block = Block(32, 4)
    block.mlp.fc1.extra = block.mlp.fc1.weight * 2  # not a leaf
    report = accelerate(nn.ModuleList([block, Block(32, 4)]))
    assert "cannot be copied" in report.kept["0.mlp"]
    assert {"0.attn", "1", "1.attn", "1.mlp"} <= report.replaced.keys()


@pytest.mark.parametrize("ratio", [1.5, 0.9])
def test_tuning_keeps_what_gains_nothing(ratio, monkeypatch):
    monkeypatch.setattr(tune, "race", lambda calls, device: [ratio] * (len(calls) - 1) + [1.0])
    block = Block(32, 4)
    report = accelerate(block, tune=True)
    if ratio > 1:
        assert len(report.replaced) == 3 and block.__dict__[PROOF].limits != ALWAYS
        assert set(block.__dict__[PROOF].limits.values()) == {max(tune.LENGTHS)}
    else:
        assert "nothing is gained (0.90x at 17 tokens)" in report.kept[""]


def test_longest_gain_is_an_unbroken_row():
    assert tune.longest_gain({17: 1.3, 50: 1.1, 197: 0.9, 577: 1.2}) == 50
    assert tune.longest_gain({17: 1.0, 50: 1.5}) == 0
