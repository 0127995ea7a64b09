"""An accelerated module after changes to its parts computes what the plain one computes."""

from __future__ import annotations

import copy
import random
from enum import Enum

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.models.eva import EvaAttention
from timm.models.vision_transformer import Block
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from ivcl_fast import accelerate, reference, restore
from ivcl_fast.kernels import dispatches
from ivcl_fast.models.accelerate.draws import OwnDraws
from tests.support.imposters.families import OpenClipBlock
from tests.support.marks import needs_kernels
from tests.support.small_models import config

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


def change_what_is_left_out(block):
    block.attn.attn_drop = nn.AlphaDropout(0.0) if block.attn.fused_attn else nn.Identity()
    block.attn.k_norm = nn.LayerNorm(8)
    block.ls2 = nn.Tanh()


def take_biases_away(block):
    block.mlp.fc1.bias = block.norm2.bias = None


CHANGES = (
    add_lora, add_hooks, prune_fc1, add_weight_norm, activate_dropouts, change_parts,
    change_settings, set_forward, change_what_is_left_out, take_biases_away,
)  # fmt: skip


def step(block):
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with OwnDraws(x.device):  # dropout of attention weights by the same numbers
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


class Side(Enum):
    ALL, LEFT = 0, 1


class Explicit(nn.Module):
    """Attention with settings of every kind."""

    def __init__(self, **settings) -> None:
        super().__init__()
        self.num_heads, self.to_qkv, self.to_out = 4, nn.Linear(32, 96), nn.Linear(32, 32)
        self._causal, self.scale, self.side, self.shape = False, np.float64(8**-0.5), Side.ALL, ()
        self.attend, self.softmax = nn.Softmax(-1), torch.softmax
        vars(self).update(settings)

    def forward(self, x):
        q, k, v = self.to_qkv(x).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) * float(self.scale)
        if self._causal or self.side is Side.LEFT or self.shape:
            scores = scores.masked_fill(torch.ones(x.shape[1], x.shape[1]).triu(1) > 0, -1e9)
        p = self.attend(scores) if self.softmax is torch.softmax else self.softmax(scores, -1)
        return self.to_out((p @ v).transpose(1, 2).flatten(2))


SETTINGS = (
    {"_causal": True}, {"scale": np.float64(2)}, {"side": Side.LEFT}, {"shape": (1, [2])},
    {"softmax": lambda x, dim: x.relu()},
)  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: next(iter(settings)))
def test_no_setting_is_overlooked(settings):
    """Neither of another module that is built alike, nor one that changes later."""
    torch.manual_seed(0)
    plain = nn.ModuleList([Explicit(), Explicit(**settings)])
    fast, x = copy.deepcopy(plain), torch.randn(2, 5, 32)
    report = accelerate(fast)
    assert "0" in report.replaced and "something else" in report.kept["1"]
    torch._dynamo.reset()  # all modules of a class share the limit of recompilations
    compiled = torch.compile(fast[0], backend="eager", fullgraph=True)
    for changes in ({}, settings):
        for part in (fast[0], plain[0]):
            vars(part).update(changes)
        for forward in (fast[0], compiled):
            torch.testing.assert_close(forward(x), plain[0](x))


@pytest.mark.parametrize("first", ["accelerate", "hook"])
def test_attention_weights_are_still_recorded(first):
    """By a hook on a part that the fused pass has no use for."""
    fast, x, recorded = Explicit(), torch.randn(2, 5, 32), []
    if first == "accelerate":
        assert accelerate(fast).replaced
    fast.attend.register_forward_hook(lambda module, args, out: recorded.append(out))
    if first == "hook":
        assert "attend has a hook, which would no longer be called" in accelerate(fast).kept[""]
    fast(x)
    assert [out.shape for out in recorded] == [(2, 4, 5, 5)]


def test_a_buffer_may_say_anything():
    class Masked(nn.MultiheadAttention):
        def __init__(self, mask):
            super().__init__(32, 4, batch_first=True)
            self.register_buffer("mask", mask)

        def forward(self, query, key, value, need_weights=True):
            return super().forward(query, key, value, attn_mask=self.mask, need_weights=False)

    class Shifted(nn.LayerNorm):
        def __init__(self, shift):
            super().__init__(32)
            self.register_buffer("shift", torch.tensor(shift))

        def forward(self, x):
            return super().forward(x) + self.shift

    def block(shift):
        block = Block(32, 4)
        block.norm1 = Shifted(shift)
        return block

    masks = [Masked(torch.zeros(1)), Masked(torch.zeros(1))]
    report = accelerate(nn.ModuleList([*masks, block(0.0), block(1.0)]))
    assert report.kept["0"] == "Masked: mask [1] is not a known part"
    assert (
        report.kept["2"] == report.kept["3"] == ("Block: norm1 has buffers, whose use is not known")
    )


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
        ((x, x), {"value": other, "need_weights": False}),
        ((x, x, x), {"need_weights": False, "attn_mask": torch.ones(9, 9).tril() == 0}),
    ):
        for ours, theirs in zip(fast(*arguments[0], **arguments[1]),
                                plain(*arguments[0], **arguments[1]), strict=True):  # fmt: skip
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_a_weight_may_become_one_with_an_arithmetic_of_its_own():
    """As quantisation and distribution do; kernels cannot read such a weight."""

    class Own(torch.Tensor):
        pass

    plain = nn.MultiheadAttention(32, 4, batch_first=True)
    fast, x = copy.deepcopy(plain), torch.randn(2, 9, 32)
    assert accelerate(fast).replaced
    for part in (plain, fast):
        weight = part.in_proj_weight.detach().as_subclass(Own)
        part.in_proj_weight = nn.Parameter(weight)
    before = dispatches()
    ours, theirs = (part(x, x, x, need_weights=False)[0] for part in (fast, plain))
    assert dispatches() == before
    assert type(ours) is type(theirs) and torch.equal(ours, theirs)


def test_an_adapter_beside_biases_of_queries_and_values():
    """The fused pass reads the weight of that layer; EVA's own calls the layer."""
    torch.manual_seed(0)
    plain = EvaAttention(32, 4, qkv_bias_separate=True, scale_norm=False)
    fast, x = copy.deepcopy(plain), torch.randn(2, 9, 32)
    assert accelerate(fast).fused_calls[""] == 1
    unchanged = fast(x)
    torch.testing.assert_close(unchanged, plain(x))
    plain.qkv = fast.qkv = Lora(plain.qkv)
    torch.testing.assert_close(fast(x), plain(x))
    assert not torch.allclose(fast(x), unchanged)


class MultiheadLora(nn.Module):
    """An adapter around PyTorch's MultiheadAttention, as peft builds it: its weights are merged
    while that runs."""

    def __init__(self, base: nn.MultiheadAttention) -> None:
        super().__init__()
        self.base_layer, width = base, base.embed_dim
        self.a, self.b = nn.Linear(width, 2, bias=False), nn.Linear(2, 3 * width, bias=False)

    def forward(self, query, *args, **kwargs):
        base = self.base_layer
        own = base._parameters.pop("in_proj_weight")
        base.in_proj_weight = own + self.b.weight @ self.a.weight
        try:
            return base(query, *args, **kwargs)
        finally:
            del base.in_proj_weight
            base.register_parameter("in_proj_weight", own)


@pytest.mark.parametrize("first", ["accelerate", "adapter"])
def test_an_adapter_around_multihead_attention_in_a_block(first):
    def add_adapter(block: nn.Module) -> None:
        torch.manual_seed(1)
        block.attn = MultiheadLora(block.attn)

    torch.manual_seed(0)
    plain = OpenClipBlock(32, 4, 64, random.Random(0))
    fast = copy.deepcopy(plain)
    unchanged = step(plain)[0]
    plain.zero_grad()
    for change in (accelerate, add_adapter) if first == "accelerate" else (add_adapter, accelerate):
        change(fast)
    add_adapter(plain)
    before = dispatches()
    for ours, theirs in zip(step(fast), step(plain), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    is_block_fused = "add_layer_norm" in {name for name, _ in dispatches() - before}
    assert is_block_fused == (first == "accelerate")
    assert not torch.allclose(step(fast)[0], unchanged)


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


def test_restoring_tells_which_modules_of_the_reference_stay_fused(caplog):
    """Their class is a parametrisation's, which has no other forward pass."""
    encoder = reference.Encoder(config())
    accelerate(encoder)
    parametrize.register_parametrization(encoder, "pos_embed", nn.Identity())
    restore(encoder)
    assert "Encoder stays fused" in caplog.text and len(caplog.messages) == 1
    assert type(encoder.blocks[0]) is reference.Block
    parametrize.remove_parametrizations(encoder, "pos_embed")
    restore(encoder)
    assert type(encoder) is reference.Encoder and len(caplog.messages) == 1
