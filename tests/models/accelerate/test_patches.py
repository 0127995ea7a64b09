"""Patch embeddings as matrix products: equal to the convolution, and used where they are faster."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from ivcl_fast import accelerate
from ivcl_fast.models.accelerate import comparison, patches
from ivcl_fast.models.accelerate.patches import of_patches

BF16 = torch.bfloat16


def embedding(*kernel: int, **options) -> nn.Module:
    kind = {2: nn.Conv2d, 3: nn.Conv3d}[len(kernel)]
    return kind(3, 20, kernel, **{"stride": kernel} | options)


CASES = {
    "square": (embedding(8, 8), (2, 3, 24, 16)),
    "oblong": (embedding(8, 16), (1, 3, 16, 48)),
    "something left over": (embedding(14, 14), (2, 3, 31, 43)),
    "frames": (embedding(2, 8, 8), (2, 3, 5, 16, 24)),
    "no bias": (embedding(16, 16, bias=False), (3, 3, 16, 16)),
    "valid": (embedding(8, 8, padding="valid"), (2, 3, 8, 8)),
}


@pytest.mark.parametrize("name", CASES)
def test_the_product_is_the_convolution(name):
    """In float64, with gradients and second derivatives."""
    conv, shape = CASES[name]
    conv = copy.deepcopy(conv).double()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    expected, found = conv(x), of_patches(x, conv.weight, conv.bias)
    assert found.is_contiguous()
    torch.testing.assert_close(found, expected)
    inputs = [x, *conv.parameters()]
    for out in (expected, found):
        out.grads = torch.autograd.grad(out.sin().sum(), inputs, create_graph=True)
        out.second = torch.autograd.grad(sum(g.square().sum() for g in out.grads), inputs)
    for got, want in zip(found.grads + found.second, expected.grads + expected.second, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    "conv",
    [
        embedding(8, 8, stride=(4, 4)),
        embedding(8, 8, padding=1),
        embedding(8, 8, dilation=2),
        nn.Conv2d(4, 4, 8, 8, groups=2),
    ],
    ids=["overlap", "padding", "dilation", "groups"],
)
def test_other_convolutions_stay(conv):
    kind = type(conv)
    assert not accelerate(conv).replaced and type(conv) is kind


@pytest.fixture
def products(monkeypatch):
    """Counts the products, without those of comparisons."""
    calls = []
    real = patches.of_patches
    monkeypatch.setattr(patches, "of_patches", lambda *args: calls.append(1) or real(*args))
    monkeypatch.setattr(comparison, "compare", lambda *_: None)
    monkeypatch.setattr(comparison, "_differences", {})
    return calls


def test_the_convolution_runs_where_it_is_as_fast(products):
    plain, x = embedding(8, 8), torch.randn(1, 3, 16, 16)
    fast = copy.deepcopy(plain)
    accelerate(fast)
    assert torch.equal(fast(x), plain(x))  # float32
    assert torch.equal(fast(x[0]), plain(x[0]))  # without a batch
    assert not products
    with torch.autocast("cpu", BF16):
        fast(x)
        assert len(products) == 1
        assert torch.equal(fast(x[0]), plain(x[0]))
        with pytest.raises(RuntimeError):  # smaller than a window
            fast(x[..., :4])
        with pytest.raises(RuntimeError):  # other channels
            fast(x[:, :2])
    assert len(products) == 1
    fast.bfloat16()(x.bfloat16())
    assert len(products) == 2


def test_a_changed_convolution_runs_its_own_code(products):
    plain, x = embedding(8, 8), torch.randn(1, 3, 16, 16)
    fast = copy.deepcopy(plain)
    report = accelerate(fast)
    for conv in (plain, fast):
        conv.stride = 4, 4
    with torch.autocast("cpu", BF16):
        assert torch.equal(fast(x), plain(x))
    assert not products and report.kept[""].startswith("Conv2d: ")
