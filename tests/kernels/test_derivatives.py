"""Derivatives other than a backward pass: every op has those of plain PyTorch.

An op's ``_ref`` on the same arguments is plain PyTorch's result. Second derivatives pass
through a fused kernel and plain PyTorch, so their rounding errors add up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, func
from torch.utils import _pytree as pytree

from ivcl_fast import kernels
from ivcl_fast.kernels import _ext
from ivcl_fast.kernels.attention import attention
from tests.kernels.ops.table import OPS, SMALL, Op, floats

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def linear_inputs(shape: tuple, **kind: Any) -> list[Tensor]:
    return floats((3, 5, 12), (7, 12), 7, **kind)


of_attention = OPS["short_attention"]
MORE_OPS = OPS | {
    "attention": of_attention._replace(public=attention),
    "linear": Op(None, F.linear, kernels.linear, linear_inputs, of_attention.shapes, ()),
}


def functions(name: str, device: str) -> tuple[Callable, Callable, list[Tensor]]:
    """An op and its reference as functions of the float arguments alone, and these."""
    op = MORE_OPS[name]
    torch.manual_seed(0)
    inputs = op.inputs(op.shapes[SMALL], dtype=torch.float32, device=device)
    at = [i for i, x in enumerate(inputs) if isinstance(x, Tensor) and x.is_floating_point()]

    def of_floats(run: Callable) -> Callable:
        def function(*xs: Tensor) -> Any:
            args = list(inputs)
            for i, x in zip(at, xs, strict=True):
                args[i] = x
            return run(*args)

        return function

    # Sines of large sums would tell rounding apart from rounding.
    scaled = "embed_patches", "transformer_block"
    small = [inputs[i] / 4 if name in scaled else inputs[i] * 0.5 + 0.5 for i in at]
    return of_floats(op.public), of_floats(op.plain), small


# --- Derivatives: from a function and its float arguments to tensors -----------------------------


def directions(xs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple((x * 3 + 1).cos() for x in xs)


def scalar(f: Callable) -> Callable:
    """A function with a second derivative, even of what is linear."""
    return lambda *xs: sum(y.sin().sum() for y in pytree.tree_leaves(f(*xs)))


def stacked(xs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.stack([x, x.sin(), 1 - x]) for x in xs)


def jvp(f, xs):
    return func.jvp(f, xs, directions(xs))


def vmap(f, xs):
    return torch.vmap(f)(*stacked(xs))


def double_backward(f, xs):
    leaves = [x.clone().requires_grad_() for x in xs]
    grads = torch.autograd.grad(scalar(f)(*leaves), leaves, create_graph=True)
    penalty = sum((g.sin() ** 2).sum() for g in grads)
    return [*grads, *torch.autograd.grad(penalty, leaves, materialize_grads=True)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("derivative", [jvp, vmap, double_backward])
@pytest.mark.parametrize("name", MORE_OPS)
def test_derivative(name, derivative, device, monkeypatch):
    dtype = torch.float32
    if name == "linear" and _ext.MISSING is None:
        monkeypatch.setattr(_ext, "ISA", "amx")  # as on a CPU with AMX
        dtype = torch.bfloat16
    ours, ref, xs = functions(name, device)
    xs = tuple(x.to(dtype) for x in xs)
    got, same, exact = (
        pytree.tree_leaves(derivative(f, tuple(x.to(d) for x in xs)))
        for f, d in ((ours, dtype), (ref, dtype), (ref, torch.float64))
    )
    assert len(got) == len(same) == len(exact) > 0
    for g, s, e in zip(got, same, exact, strict=True):
        assert g.shape == e.shape and g.dtype == s.dtype
        g, s, e = (t.detach().double() for t in (g, s, e))
        ulps = 16 * torch.finfo(dtype).eps * e.abs().max()
        assert (g - e).abs().max() <= 4 * (s - e).abs().max() + ulps


@pytest.mark.parametrize("device", DEVICES)
def test_masks_of_batched_seeds(device):
    seeds = torch.arange(12, device=device).view(3, 4)
    batched = torch.vmap(lambda s: kernels.sample_masks(s, 16, 5))(seeds)
    for got, expected in zip(batched, kernels.sample_masks(seeds, 16, 5), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
@pytest.mark.parametrize("name", MORE_OPS)
def test_any_float_dtype(name, dtype):
    """Of all arguments, or of one: what no kernel takes runs in plain PyTorch."""
    ours, ref, xs = functions(name, "cpu")
    one_dtype = (0, 1, 2) if name == "linear" else ()  # theirs has to be equal
    single = [{at} for at in range(len(xs)) if at not in one_dtype]
    for changed in [set(range(len(xs))), *single]:
        args = [x.to(dtype) if at in changed else x for at, x in enumerate(xs)]
        found, expected = (pytree.tree_leaves(f(*args)) for f in (ours, ref))
        torch.testing.assert_close(found, expected, rtol=0.01, atol=0.01)
