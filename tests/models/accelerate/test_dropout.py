"""Dropout of attention weights: accelerated modules drop from the same tensor, by other numbers.

``OwnDraws`` gives both the fused op's numbers, so that they can be compared.
"""

from __future__ import annotations

import copy

import pytest
import torch
from timm.models.vision_transformer import Attention, Block
from torch import nn
from torch.utils.checkpoint import checkpoint

from ivcl_fast import accelerate
from ivcl_fast.kernels import dispatches
from ivcl_fast.models.accelerate.draws import OwnDraws
from tests.support.marks import needs_kernels

pytestmark = needs_kernels
DROPOUT = 0.3
OPS = {"short_attention", "short_attention_backward"}


class Explicit(nn.Module):
    """Attention with its softmax written out and dropout at one of several places."""

    def __init__(self, place: str = "weights", dropout: float = DROPOUT) -> None:
        super().__init__()
        self.qkv, self.proj, self.num_heads = nn.Linear(32, 96), nn.Linear(32, 32), 4
        self.attn_drop, self.place = nn.Dropout(dropout), place

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        weights = self.drop("scores", q @ k.transpose(-2, -1) * 8**-0.5).softmax(dim=-1)
        weights = self.drop("unscaled", self.drop("weights", weights))
        weights = self.drop("twice", self.drop("twice", weights))
        weights = weights * (1 - DROPOUT if self.place == "unscaled" else 1)
        out = (weights @ self.drop("values", v)).transpose(1, 2).flatten(2)
        return self.drop("output", self.proj(self.drop("heads", out)))

    def drop(self, place, x):
        return self.attn_drop(x) if self.place == place else x


def encoder_layer():
    return nn.TransformerEncoderLayer(32, 4, 64, DROPOUT, "gelu", batch_first=True, norm_first=True)


MODELS = {
    "explicit": Explicit,
    "explicit, a half": lambda: Explicit(dropout=0.5),
    "timm": lambda: Attention(32, 4, attn_drop=DROPOUT),
    "timm block": lambda: Block(32, 4, attn_drop=DROPOUT, proj_drop=DROPOUT),
    "encoder layer": encoder_layer,
    "encoder": lambda: nn.TransformerEncoder(encoder_layer(), 2, enable_nested_tensor=False),
}


def both(name):
    torch.manual_seed(0)
    plain = MODELS[name]()
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.normal_(std=0.3)
    fast = copy.deepcopy(plain)
    accelerate(fast)
    return plain, fast


def step(model, x):
    x = x.clone().requires_grad_()
    with OwnDraws(x.device):
        out = model(x)
    out.square().sum().backward()
    return [out, x.grad, *(p.grad for p in model.parameters())]


@pytest.mark.parametrize("tokens", [5, 50])
@pytest.mark.parametrize("name", MODELS)
def test_the_same_weights_are_dropped_by_the_same_numbers(name, tokens):
    plain, fast = both(name)
    x = torch.randn(3, tokens, 32)
    expected, before = step(plain, x), dispatches()
    got, used = step(fast, x), dispatches() - before
    assert {op for op, how in used if how != "ref"} >= OPS
    for a, b in zip(expected, got, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * a.abs().max().item())


@pytest.mark.parametrize("module_trains", [False, True])
def test_a_dropout_may_have_a_mode_of_its_own(module_trains):
    """Monte Carlo dropout drops in evaluation; frozen dropouts drop nothing in training."""
    plain, fast = both("explicit")
    x = torch.randn(3, 50, 32)
    for model in (plain, fast):
        model.train(module_trains).attn_drop.train(not module_trains)
    for a, b in zip(step(plain, x), step(fast, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * a.abs().max().item())
    assert torch.equal(fast(x), fast(x)) == module_trains


@pytest.mark.parametrize("place", ["scores", "unscaled", "twice", "values", "heads", "output"])
def test_dropout_elsewhere_is_noticed(place):
    report = accelerate(Explicit(place))
    assert not report.replaced and "computes something else" in report.kept[""]


def test_dropout_of_another_module_class_is_compared():
    """A class may do with its dropout what it likes."""

    class Tripled(nn.MultiheadAttention):
        def forward(self, query, *args, **kwargs):
            out, weights = super().forward(query, *args, **kwargs)
            return nn.functional.dropout(out, self.dropout, self.training), weights

    report = accelerate(Tripled(32, 4, dropout=DROPOUT, batch_first=True))
    assert not report.replaced


@pytest.mark.parametrize("name", MODELS)
def test_numbers_come_from_the_global_generator(name):
    _, fast = both(name)
    x, outs = torch.randn(2, 6, 32), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outs.append(fast(x))
    assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])


def test_the_mean_of_many_draws_is_what_evaluation_computes():
    _, fast = both("explicit")
    x = torch.randn(1, 6, 32)
    with torch.no_grad():
        many = torch.stack([fast(x) for _ in range(2000)])
        expected = fast.eval()(x)
    error = many.std(0) / len(many) ** 0.5
    assert ((many.mean(0) - expected).abs() < 5 * error).all()


def test_a_certain_dropout_is_the_modules_own():
    model = Explicit(dropout=1.0)
    accelerate(model)
    x = torch.randn(2, 5, 32)
    torch.testing.assert_close(model(x), model.proj.bias.expand(2, 5, 32))


def test_checkpointing_repeats_the_numbers():
    _, fast = both("explicit")
    x = torch.randn(2, 6, 32)
    grads = []
    for run in (fast, lambda x: checkpoint(fast, x, use_reentrant=False)):
        torch.manual_seed(4)
        leaf = x.clone().requires_grad_()
        run(leaf).square().sum().backward()
        grads.append(leaf.grad)
    assert torch.equal(*grads)


def test_compiled_modules_draw_too():
    _, fast = both("explicit")
    x = torch.randn(2, 6, 32)
    fast(x.clone().requires_grad_())  # compares the length before it is traced
    torch._dynamo.reset()
    compiled, before, outs = torch.compile(fast, backend="aot_eager"), dispatches(), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        outs.append(compiled(x.clone().requires_grad_()))
        outs[-1].sum().backward()
    assert torch.equal(outs[0], outs[1]) and not torch.equal(outs[0], outs[2])
    assert {op for op, how in dispatches() - before if how != "ref"} >= OPS
