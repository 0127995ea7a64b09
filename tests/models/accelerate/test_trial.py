"""Trials of modules: where they run, which modules cannot be tried, and what tuning measures."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from timm.layers import LayerNorm, Mlp
from timm.models.vision_transformer import Block
from torch import nn

from ivcl_fast import accelerate, restore
from ivcl_fast.models.accelerate import probe, tune
from ivcl_fast.models.accelerate.swap import ALWAYS, REPLACEMENT
from tests.support.marks import needs_kernels
from tests.support.plain_modules import Attention

pytestmark = needs_kernels


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
        assert len(report.replaced) == 3 and block.__dict__[REPLACEMENT].limits != ALWAYS
        assert set(block.__dict__[REPLACEMENT].limits.values()) == {max(tune.LENGTHS)}
    else:
        assert "nothing is gained (0.90x at 17 tokens)" in report.kept[""]


def test_longest_gain_is_an_unbroken_row():
    assert tune.longest_gain({17: 1.3, 50: 1.1, 197: 0.9, 577: 1.2}) == 50
    assert tune.longest_gain({17: 1.0, 50: 1.5}) == 0


def mlp(linear=nn.Linear):
    return nn.Sequential(linear(32, 64), nn.GELU(), nn.Linear(64, 32))


class Detached(nn.Module):
    """An MLP that differs in a gradient alone."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x.detach())))


class Frozen(Detached):
    """One that differs in the gradient of a weight alone."""

    def forward(self, x):
        return self.fc2(self.act(F.linear(x, self.fc1.weight.detach(), self.fc1.bias)))


@pytest.mark.parametrize(
    "context",
    [torch.inference_mode(), torch.no_grad(), torch.device("meta")],
    ids=["inference mode", "no gradients", "meta device"],
)
def test_where_it_is_called_does_not_matter(context):
    model = nn.ModuleList([mlp(), Detached(), Frozen()])
    with context:
        report = accelerate(model)
    assert [*report.replaced] == ["0"]
    assert "other gradients" in report.kept["1"] and "other gradients" in report.kept["2"]
    model[0](torch.randn(2, 23, 32)).sum().backward()


class DoubledMlp(Mlp):
    def forward(self, x):
        return 2 * super().forward(x)


class DoubledNorm(LayerNorm):
    def forward(self, x):
        return 2 * super().forward(x)


class WithoutScale(LayerNorm):
    """Equal to its base class as long as its weight is one."""

    def forward(self, x):
        return F.layer_norm(x, self.normalized_shape, None, self.bias, self.eps)


def block(norm: type[nn.Module]) -> nn.Module:
    """A block whose second norm only has that class."""
    made = Block(32, 4)
    made.norm2.__class__ = norm
    return made


@pytest.mark.parametrize(
    ("base", "other"),
    [
        (lambda: Mlp(32, 64), lambda: DoubledMlp(32, 64)),
        (lambda: block(LayerNorm), lambda: block(DoubledNorm)),
        (lambda: block(LayerNorm), lambda: block(WithoutScale)),
    ],
    ids=["module", "part", "scale"],
)
def test_a_subclass_has_a_verdict_of_its_own(base, other):
    """Beside a module that is equal but for the class."""
    report = accelerate(nn.ModuleList([base(), other()]))
    assert "0" in report.replaced and "something else" in report.kept["1"]


class Doubling(Block):
    """A block that reads how often its branch is dropped."""

    def forward(self, x):
        return super().forward(2 * x if self.drop_path1.drop_prob > 0.15 else x)


def test_blocks_that_drop_branches_more_or_less_often_are_tried_once(monkeypatch):
    tried, own = [], probe.try_out
    monkeypatch.setattr(probe, "try_out", lambda *args: tried.append(args) or own(*args))
    accelerate(Block(32, 4, drop_path=0.1))
    once = len(tried)
    blocks = nn.ModuleList([Block(32, 4, drop_path=rate) for rate in (0.1, 0.2, 0.0)])
    assert {*"012"} <= accelerate(blocks).replaced.keys()
    assert len(tried) - once == once + 1  # of the last block only the block itself differs
    reading = nn.ModuleList([Doubling(32, 4, drop_path=rate) for rate in (0.1, 0.2)])
    report = accelerate(reading)
    assert "0" in report.replaced and "something else" in report.kept["1"]


class Padded(Attention):
    """Attention that takes tokens of zeros for padding."""

    def forward(self, x):
        is_padding = (x == 0).all(-1)
        y = self.proj(self.attend(x.masked_fill(is_padding[..., None], 1.0)))
        return y.masked_fill(is_padding[..., None], 0.0)


def test_a_module_that_reacts_to_zeros_is_left_alone():
    assert "computes something else" in accelerate(Padded()).kept[""]


@pytest.mark.parametrize("change", [accelerate, restore])
@pytest.mark.parametrize("given", [None, "vit", [nn.Identity()]], ids=["none", "name", "list"])
def test_what_is_no_module_is_named(given, change):
    with pytest.raises(TypeError, match=rf"^module: {type(given).__name__} is not a [^\n]*$"):
        change(given)


def test_modules_that_cannot_be_tried():
    class Unbuilt(nn.Module):
        @property
        def num_heads(self):
            raise RuntimeError("not built yet")

    lazy = nn.Sequential(nn.LazyLinear(64), nn.GELU())
    scripted = torch.jit.script(mlp())
    report = accelerate(nn.ModuleList([Unbuilt(), lazy, scripted, mlp()]))
    assert [*report.replaced] == ["3"]
    assert "lazy parameters have no shapes before its first call" in report.kept["1"]


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_go_the_old_way():
    plain = nn.ModuleList([mlp(), nn.MultiheadAttention(32, 4, batch_first=True)]).eval()
    fast = copy.deepcopy(plain)
    assert len(accelerate(fast).replaced) == 2
    x = torch.nested.nested_tensor([torch.randn(3, 32), torch.randn(5, 32)])
    for run in (lambda m: m[0](x), lambda m: m[1](x, x, x, need_weights=False)[0]):
        with torch.no_grad():
            for ours, theirs in zip(run(fast).unbind(), run(plain).unbind(), strict=True):
                torch.testing.assert_close(ours, theirs)
