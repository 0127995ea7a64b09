"""Derivatives other than a backward pass: every op has those of plain PyTorch.

An op's ``_ref`` on the same arguments tells what plain PyTorch gives. Second derivatives pass
through a fused kernel and plain PyTorch, so their rounding errors add up.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, func
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from ivcl_fast import kernels
from ivcl_fast.kernels import _ext, dispatches
from ivcl_fast.kernels.add_layer_norm import _ref as ref_add_layer_norm
from ivcl_fast.kernels.add_layer_norm import _ref_biased as ref_add_layer_norm_biased
from ivcl_fast.kernels.add_layer_norm import _ref_norm
from ivcl_fast.kernels.attention import attention
from ivcl_fast.kernels.bias_gelu import _ref as ref_bias_gelu
from ivcl_fast.kernels.embed_patches import _ref as ref_embed_patches
from ivcl_fast.kernels.mixture_loss import _ref as ref_mixture_loss
from ivcl_fast.kernels.patch_loss import _ref as ref_patch_loss
from ivcl_fast.kernels.restore_tokens import _ref as ref_restore_tokens
from ivcl_fast.kernels.short_attention import _ref as ref_short_attention
from tests.kernels.ops.conftest import implementation

FRAMES, PATCHES, KEPT, WIDTH, PIXELS = 3, 8, 5, 12, 27
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SHAPES = {
    "add_layer_norm": [(FRAMES, KEPT, WIDTH), (FRAMES, KEPT, WIDTH), (WIDTH,), (WIDTH,)],
    "add_layer_norm, biased": [
        (FRAMES, KEPT, WIDTH), (WIDTH,), (FRAMES, KEPT, WIDTH), (WIDTH,), (WIDTH,)
    ],
    "attention": [(FRAMES, KEPT, 3 * WIDTH)],
    "bias_gelu": [(FRAMES, KEPT, WIDTH), (WIDTH,)],
    "embed_patches": [(WIDTH, PIXELS), (WIDTH,), (PATCHES, WIDTH)],
    "layer_norm": [(FRAMES, KEPT, WIDTH), (WIDTH,), (WIDTH,)],
    "linear": [(FRAMES, KEPT, WIDTH), (7, WIDTH), (7,)],
    "mixture_loss": [(FRAMES, 2, PATCHES, 4 * 3), (PATCHES, 3, 3)],
    "patch_loss": [(FRAMES, KEPT, PIXELS)],
    "restore_tokens": [
        (FRAMES, KEPT, WIDTH), (WIDTH,), (PATCHES, WIDTH), (FRAMES, 2, WIDTH)
    ],
    "short_attention": [(FRAMES, KEPT, 3 * WIDTH)],
    "short_attention, dropout": [(FRAMES, KEPT, 3 * WIDTH)],
}  # fmt: skip
"""The shapes of every op's float arguments."""


def functions(name: str, device: str) -> tuple[Callable, Callable]:
    """An op and its ``_ref`` as functions of the float arguments alone."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(256, (FRAMES, PATCHES, PIXELS), dtype=torch.uint8, generator=generator)
    ids = torch.rand(FRAMES, PATCHES, generator=generator).argsort(1)[:, :KEPT]
    rows, ids, seed = rows.to(device), ids.to(device), torch.tensor(7, device=device)

    def embed(run: Callable) -> Callable:
        return lambda w, b, p: run(rows, ids, w, b, p, 0.5, 0.25, w.dtype)

    def loss(run: Callable) -> Callable:
        return lambda pred: run(pred, rows, ids, True, 0.5, 0.25)

    def mixture(run: Callable) -> Callable:
        true = torch.randn(FRAMES, PATCHES, 9, generator=torch.Generator().manual_seed(1))
        true = true.to(device)
        return lambda drawn, background: run(drawn, true, background, 3.0, 0.1, 0.1)[0]

    def restore(run: Callable) -> Callable:
        return lambda visible, *rest: run(visible, ids, *rest)

    return {
        "add_layer_norm": (kernels.add_layer_norm, partial(ref_add_layer_norm, eps=1e-6)),
        "add_layer_norm, biased": (
            lambda x, x_bias, *rest: kernels.add_layer_norm(x, *rest, x_bias=x_bias),
            partial(ref_add_layer_norm_biased, eps=1e-6),
        ),
        "attention": (lambda x: attention(x, 2), lambda x: ref_short_attention(x, 2)),
        "bias_gelu": (kernels.bias_gelu, ref_bias_gelu),
        "embed_patches": (embed(kernels.embed_patches), embed(ref_embed_patches)),
        "layer_norm": (kernels.layer_norm, lambda x, w, b: _ref_norm(x, w, b, 1e-6, x.dtype)),
        "linear": (kernels.linear, F.linear),
        "mixture_loss": (mixture(kernels.mixture_loss), mixture(ref_mixture_loss)),
        "patch_loss": (loss(kernels.patch_loss), loss(ref_patch_loss)),
        "restore_tokens": (restore(kernels.restore_tokens), restore(ref_restore_tokens)),
        "short_attention": (
            lambda x: kernels.short_attention(x, 2), lambda x: ref_short_attention(x, 2)
        ),
        "short_attention, dropout": (
            lambda x: kernels.short_attention(x, 2, 0.3, seed),
            lambda x: ref_short_attention(x, 2, 0.3, seed),
        ),
    }[name]  # fmt: skip


# --- Derivatives: from a function and its float arguments to tensors -----------------------------


def directions(xs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple((x * 3 + 1).cos() for x in xs)


def scalar(f: Callable) -> Callable:
    """A function with a second derivative, even of what is linear."""
    return lambda *xs: sum(y.sin().sum() for y in pytree.tree_leaves(f(*xs)))


def gradient(f: Callable, xs: tuple[Tensor, ...]) -> Callable:
    return func.grad(scalar(f), argnums=tuple(range(len(xs))))


def stacked(xs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.stack([x, x.sin(), 1 - x]) for x in xs)


def jvp(f, xs):
    return func.jvp(f, xs, directions(xs))


def dual_numbers(f, xs):
    with forward_ad.dual_level():
        out = f(*map(forward_ad.make_dual, xs, directions(xs)))
        return [forward_ad.unpack_dual(y).tangent for y in pytree.tree_leaves(out)]


def func_grad(f, xs):
    return gradient(f, xs)(*xs)


def vmap(f, xs):
    return torch.vmap(f)(*stacked(xs))


def vmap_of_grad(f, xs):
    return torch.vmap(gradient(f, xs))(*stacked(xs))


def grad_of_grad(f, xs):
    return func_grad(gradient(f, xs), xs)


def hessian_vector_product(f, xs):
    return func.jvp(gradient(f, xs), xs, directions(xs))


def double_backward(f, xs):
    leaves = [x.clone().requires_grad_() for x in xs]
    grads = torch.autograd.grad(scalar(f)(*leaves), leaves, create_graph=True)
    penalty = sum((g.sin() ** 2).sum() for g in grads)
    return [*grads, *torch.autograd.grad(penalty, leaves, materialize_grads=True)]


def double_backward_of_related_arguments(f, xs):
    """Arguments that depend on each other: no gradient may be counted twice."""
    t = torch.ones((), dtype=xs[0].dtype, device=xs[0].device, requires_grad=True)
    scaled = [x * t ** (n + 1) for n, x in enumerate(xs)]
    (grad,) = torch.autograd.grad(scalar(f)(*scaled), t, create_graph=True)
    (second,) = torch.autograd.grad(grad, t, create_graph=True)
    return [grad, second, *torch.autograd.grad(second, t)]


def batched_backward(f, xs):
    leaves = [x.clone().requires_grad_() for x in xs]
    outs = pytree.tree_leaves(f(*leaves))
    return torch.autograd.grad(
        outs, leaves, stacked(tuple(y.detach().cos() for y in outs)), is_grads_batched=True
    )


def backward_of_dual_cotangents(f, xs):
    leaves = [x.clone().requires_grad_() for x in xs]
    outs = pytree.tree_leaves(f(*leaves))
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(y.detach().cos(), y.detach().sin()) for y in outs]
        grads = torch.autograd.grad(outs, leaves, duals)
        return [forward_ad.unpack_dual(g).tangent for g in grads]


def backward_of_a_sum(f, xs):
    """Its cotangents are one number in memory, expanded."""
    leaves = [x.clone().requires_grad_() for x in xs]
    return torch.autograd.grad(sum(y.sum() for y in pytree.tree_leaves(f(*leaves))), leaves)


FEW = [jvp, vmap, double_backward]
"""Derivatives of every op, and below those that one op of each kind has besides."""
MORE = [
    dual_numbers, func_grad, vmap_of_grad, grad_of_grad, hessian_vector_product,
    double_backward_of_related_arguments, batched_backward, backward_of_dual_cotangents,
    backward_of_a_sum,
]  # fmt: skip
REPRESENTATIVES = ["add_layer_norm", "embed_patches", "linear"]
"""Ops with two outputs, with integer arguments, and with saved products."""
CASES = [(name, derivative) for name in SHAPES for derivative in FEW]
CASES += [(name, derivative) for name in REPRESENTATIVES for derivative in MORE]


def arguments(name: str, seed: int = 0) -> list[Tensor]:
    """Float arguments of an op, with which its outputs are of the order of 1.

    Sines of large sums would tell rounding apart from rounding.
    """
    generator = torch.Generator().manual_seed(seed)
    xs = [torch.randn(shape, generator=generator) * 0.5 + 0.5 for shape in SHAPES[name]]
    if name == "embed_patches":  # sums over the pixels of a patch
        xs[0] /= PIXELS
    return xs


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("name", "derivative"), CASES, ids=lambda value: getattr(value, "__name__", value)
)
def test_derivative(name, derivative, device, monkeypatch):
    dtype = torch.float32
    if name == "linear" and _ext.MISSING is None:
        monkeypatch.setattr(_ext, "ISA", "amx")  # as on a CPU with AMX
        dtype = torch.bfloat16
    ours, ref = functions(name, device)
    xs = tuple(x.to(device, dtype) for x in arguments(name))
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


@pytest.mark.skipif(implementation("cpu") is None, reason="no kernels here")
def test_only_training_and_inference_run_on_the_kernels():
    x, bias = torch.randn(2, 5), torch.randn(5, requires_grad=True)
    fused, before = implementation("cpu"), dispatches()
    kernels.bias_gelu(x, bias).sum().backward()
    assert dispatches() - before == {("bias_gelu", fused): 1, ("bias_gelu_backward", fused): 1}
    before = dispatches()
    torch.vmap(kernels.bias_gelu, (0, None))(x, bias.detach())
    assert dispatches() - before == {("bias_gelu", "ref"): 1}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
@pytest.mark.parametrize("name", SHAPES)
def test_any_float_dtype(name, dtype):
    """Of all arguments, or of one: what no kernel takes runs in plain PyTorch."""
    ours, ref = functions(name, "cpu")
    xs = arguments(name)
    one_dtype = (0, 1, 2) if name == "linear" else ()  # theirs has to be equal
    single = [{at} for at in range(len(xs)) if at not in one_dtype]
    for changed in [set(range(len(xs))), *single]:
        args = [x.to(dtype) if at in changed else x for at, x in enumerate(xs)]
        found, expected = (pytree.tree_leaves(f(*args)) for f in (ours, ref))
        torch.testing.assert_close(found, expected, rtol=0.01, atol=0.01)
