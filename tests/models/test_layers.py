"""Hooks and overridden methods of parts run in the fast model, too; dtypes are PyTorch's."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from ivcl_fast import IVCL, reference
from ivcl_fast import nn as fused
from ivcl_fast.models.layers import Branch, add_norm
from tests.support.small_models import config, random_video

VIDEO, SEED = random_video(1), torch.tensor([1])
LAYERS = nn.Linear, nn.LayerNorm
STACKS = reference.Attention, reference.Mlp, reference.Block


def backward_hook(part: nn.Module, called: Callable[[], None]) -> None:
    part.register_full_backward_hook(lambda *_: called())


def backward_pre_hook(part: nn.Module, called: Callable[[], None]) -> None:
    part.register_full_backward_pre_hook(lambda *_: called())


def forward_hook(part: nn.Module, called: Callable[[], None]) -> None:
    part.register_forward_hook(lambda *_: called())


def own_forward(part: nn.Module, called: Callable[[], None]) -> None:
    """As adapters have that are subclasses."""
    kind = type(part)

    def forward(self, *args, **options):
        called()
        return kind.forward(self, *args, **options)

    part.__class__ = type("Own", (kind,), {"forward": forward})


@pytest.mark.parametrize("kinds", [LAYERS, STACKS], ids=["layers", "stacks"])
@pytest.mark.parametrize("watch", [backward_hook, backward_pre_hook, forward_hook, own_forward])
def test_no_part_is_passed_over(watch, kinds):
    model, called = IVCL(config()), set()
    parts = {name: part for name, part in model.named_modules() if isinstance(part, kinds)}
    for name, part in parts.items():
        watch(part, lambda name=name: called.add(name))
    model(VIDEO, seed=SEED).loss.backward()
    assert called == set(parts)


def test_a_float32_branch_is_not_rounded_to_a_bfloat16_stream():
    """The sum is float32, as PyTorch's."""
    norm, x, branch = nn.LayerNorm(8), torch.randn(2, 3, 8).bfloat16(), torch.randn(2, 3, 8)
    total, normed = add_norm(x, Branch(branch), norm)
    torch.testing.assert_close(total, x + branch, rtol=0, atol=0)
    torch.testing.assert_close(normed, norm(x + branch))


def test_float64_is_never_cast():
    """Autocast leaves it alone, and so do the fused layers."""
    torch.manual_seed(0)
    fast, plain = IVCL(config()).double(), reference.IVCL(config()).double()
    plain.load_state_dict(fast.state_dict())
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = (model(VIDEO, seed=SEED).pred for model in (fast, plain))
    torch.testing.assert_close(ours, theirs)


def test_public_layers_compute_what_plain_ones_do():
    torch.manual_seed(0)
    x, residual = torch.randn(2, 3, 5, 16)
    norm, plain = fused.AddLayerNorm(16), nn.LayerNorm(16, eps=1e-6)
    plain.load_state_dict(norm.state_dict())
    stream, normed = norm(x, residual)
    torch.testing.assert_close(stream, x + residual)
    torch.testing.assert_close(normed, plain(x + residual))


def test_layers_without_biases():
    torch.manual_seed(0)
    x, plain, fast = torch.randn(2, 5, 16), reference.Block(16, 2, 4.0), fused.Block(16, 2, 4.0)
    for block in (plain, fast):
        block.norm1 = nn.LayerNorm(16, bias=False)
        block.attn.qkv.bias = block.attn.proj.bias = block.mlp.fc1.bias = block.mlp.fc2.bias = None
    fast.load_state_dict(plain.state_dict())
    torch.testing.assert_close(fast(x), plain(x))
