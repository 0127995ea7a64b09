"""Ops that are called directly check their arguments: no call crashes or reads what is not its own.

``.ci/sanitize`` makes 10,000 of these calls on kernels that check their own memory accesses.
"""

from __future__ import annotations

import contextlib
import random

import pytest
import torch

from ivcl_fast import kernels
from ivcl_fast.kernels import restore_tokens
from ivcl_fast.kernels._arguments import Rule, above_zero, check_arguments, checker
from tests.kernels.ops.conftest import INTERPRET, implementation
from tests.support.hostile_calls import REFUSALS, arguments, call, on_meta, read

ops = torch.ops.ivcl_fast
X, ROWS = torch.ones(2, 3, 4), torch.zeros(2, 5, 6, dtype=torch.uint8)
IDS = torch.tensor([[0, 1, 2], [2, 3, 4]])
NAMED = {
    "bias: shape": lambda: ops.bias_gelu(X, torch.ones(3)),
    "bias: shape ": lambda: ops.embed_patches(
        ROWS, IDS, torch.ones(4, 6), torch.ones(3), torch.ones(5, 4), 0.5, 0.5, X.dtype
    ),
    "dy: ": lambda: ops.bias_gelu_backward(X.long(), X, torch.ones(4)),
    "dy: shape": lambda: ops.embed_patches_backward(
        X[0], ROWS, IDS, torch.ones(4, 6), torch.ones(4), torch.ones(5, 4), 0.5, 0.5
    ),
    "dsum: shape": lambda: ops.add_layer_norm_backward(
        torch.ones(()), X, X, torch.ones(4), 1e-6, X.dtype
    ),
    "dout: ": lambda: ops.restore_tokens_backward(X, IDS, X[0, 0], torch.ones(5, 4)),
    "dout: shape|num_heads: .*dout": lambda: ops.short_attention_backward(
        torch.ones(2, 3, 5), torch.ones(2, 3, 12), 2
    ),
    "residual: shape": lambda: ops.add_layer_norm(X, X[:1], torch.ones(4), torch.ones(4), 1e-6),
    "x_bias: shape": lambda: ops.add_layer_norm_biased(
        X, torch.ones(3), X, torch.ones(4), torch.ones(4), 1e-6
    ),
    "weight: shape": lambda: ops.layer_norm(X, torch.ones(()), torch.ones(4), 1e-6, X.dtype),
    "ids: ": lambda: ops.patch_loss(torch.ones(2, 3, 6), ROWS, IDS.int(), True, 0.5, 0.5, True),
    "true: shape": lambda: ops.mixture_loss(
        torch.ones(2, 4, 5, 8), torch.ones(2, 5, 5), torch.ones(5, 3, 2), 3.0, 0.1, 0.1
    ),
    "background: shape": lambda: ops.mixture_loss(
        torch.ones(2, 4, 5, 8), torch.ones(2, 5, 6), torch.ones(5, 2, 2), 3.0, 0.1, 0.1
    ),
    "shares: shape": lambda: ops.mixture_loss_backward(
        torch.ones(()), torch.ones(2, 4, 5, 8), torch.ones(2, 5, 6), torch.ones(5, 3, 2),
        torch.ones(2, 5, 6), torch.ones(2, 4, 5, 2), 3.0, 0.1, 0.1,
    ),
    "std: ": lambda: ops.patch_loss(torch.ones(2, 3, 6), ROWS, IDS, True, 0.5, 0.0, True),
    "pos: shape": lambda: ops.embed_patches(
        ROWS, IDS, torch.ones(4, 6), torch.ones(4), torch.ones(4, 4), 0.5, 0.5, X.dtype
    ),
    "prefix: shape": lambda: ops.restore_tokens(X, IDS, X[0, 0], torch.ones(5, 4), X[:1]),
    "num_heads: ": lambda: ops.short_attention(torch.ones(2, 3, 12), 0),
    "num_heads: 2": lambda: ops.short_attention(torch.ones(2, 3, 0), 2),
    "dropout: ": lambda: ops.short_attention(torch.ones(2, 3, 12), 2, 1.0, torch.tensor(0)),
    "dropout: -": lambda: ops.short_attention(torch.ones(2, 3, 12), 2, -0.1, torch.tensor(0)),
    "seed: None": lambda: ops.short_attention(torch.ones(2, 3, 12), 2, 0.1),
    "seed: shape": lambda: ops.short_attention(torch.ones(2, 3, 12), 2, 0.1, torch.arange(1)),
    "seed: ": lambda: ops.short_attention(torch.ones(2, 3, 12), 2, 0.1, torch.tensor(0.0)),
    "ids": lambda: ops.embed_patches(
        ROWS[:, :0], IDS, torch.ones(4, 6), torch.ones(4), torch.ones(0, 4), 0.5, 0.5, X.dtype
    ),
    "ids:": lambda: ops.patch_loss(
        torch.ones(2, 3, 6), ROWS[:, :0], IDS, True, 0.5, 0.5, True
    ),
    "num_keep: ": lambda: ops.sample_masks(torch.arange(3), 4, 5),
    "num_patches: ": lambda: ops.sample_masks(torch.arange(3), -4, 0),
}  # fmt: skip


@pytest.mark.parametrize("argument", NAMED)
def test_the_error_names_the_argument(argument):
    with pytest.raises((RuntimeError, ValueError), match=f"^{argument}"):
        NAMED[argument]()


def test_a_call_that_is_accepted_excuses_no_other():
    """Arguments of the same shapes may still be of another dtype, device or value."""
    rules = {"x": "* D", "weight": "D", "bias": "D", "eps": above_zero}
    check = checker(rules, ops.layer_norm.default)
    good = (X, torch.ones(4), torch.ones(4), 1e-6, X.dtype)
    check(good)
    for at, bad, message in (
        (0, X.long(), "x: .* is not float"),
        (2, torch.ones(4, device="meta"), "bias: .* meta, .* cpu"),
        (3, 0, "eps: 0 is not above 0"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            check((*good[:at], bad, *good[at + 1 :]))


def test_a_name_is_one_size_within_a_tensor_too():
    rules: dict[str, Rule] = {"square": "N N", "row": "N"}
    check_arguments(rules, {"square": torch.ones(3, 3), "row": torch.ones(3)})
    with pytest.raises(ValueError, match=r"^square: shape \(3, 4\) is not \[N, N\]"):
        check_arguments(rules, {"square": torch.ones(3, 4), "row": torch.ones(4)})


def test_sizes_that_depend_on_others():
    rules: dict[str, Rule] = {"x": "S 4Q", "colors": "3 Q", "shares": "S+1 Q"}
    good = {"x": torch.ones(2, 20), "colors": torch.ones(3, 5), "shares": torch.ones(3, 5)}
    check_arguments(rules, good)
    for name, shape, expected in (
        ("x", (2, 18), r"S, 4Q"),
        ("colors", (4, 5), r"3, 5"),
        ("colors", (3, 6), r"3, 5"),
        ("shares", (2, 5), r"3, 5"),
    ):
        with pytest.raises(ValueError, match=rf"^{name}: shape .* is not \[{expected}\]"):
            check_arguments(rules, good | {name: torch.ones(shape)})


@pytest.mark.skipif(INTERPRET, reason="the interpreter takes a second for a call")
@pytest.mark.filterwarnings("ignore")
def test_hostile_calls():
    for seed in range(400):
        call(seed)


@pytest.mark.skipif(INTERPRET, reason="the interpreter takes a second for a call")
@pytest.mark.parametrize("seed", range(8))
def test_outputs_lie_in_memory_as_compilers_believe(seed):
    """Also those of inputs whose dimensions lie there in another order."""
    for name, args in arguments(random.Random(seed)).items():
        turned = [a.mT.contiguous().mT if getattr(a, "ndim", 0) > 1 else a for a in args]
        op = getattr(ops, name)
        with contextlib.suppress(*REFUSALS):  # some have a size of zero
            read(op(*turned), op(*on_meta(turned)))


@pytest.mark.skipif(not INTERPRET, reason="C++ and PyTorch refuse such ids")
def test_triton_never_follows_an_id_out_of_bounds():
    wild = torch.tensor([[0, 1, 2**40], [2, -(2**40), 4]])
    near = wild.clamp(0, 4)
    for run in (
        lambda ids: ops.patch_loss(torch.ones(2, 3, 6), ROWS, ids, True, 0.5, 0.5, True)[1],
        lambda ids: ops.embed_patches(
            ROWS, ids, torch.ones(4, 6), torch.ones(4), torch.ones(5, 4), 0.5, 0.5, X.dtype
        ),
        lambda ids: ops.embed_patches_backward(
            X, ROWS, ids, torch.ones(4, 6), torch.ones(4), torch.ones(5, 4), 0.5, 0.5
        )[0],
    ):
        assert torch.equal(run(wild), run(near))


@pytest.mark.skipif(implementation("cpu") is None, reason="no kernels here")
def test_a_place_that_occurs_twice():
    """Refused by C++; with Triton the last token counts, and the others have no gradient."""
    visible = torch.randn(1, 3, 4, requires_grad=True)
    ids, pos = torch.tensor([[1, 0, 1]]), torch.zeros(3, 4)
    if implementation("cpu") == "cpp":
        with pytest.raises(RuntimeError, match=r"^ids_keep: 1 occurs twice in frame 0"):
            restore_tokens(visible, ids, torch.zeros(4), pos)
        return
    out = restore_tokens(visible, ids, torch.zeros(4), pos)
    assert torch.equal(out[0, :2], visible[0, 1:])
    (grad,) = torch.autograd.grad(out.sum(), visible)
    assert torch.equal(grad[0, :, 0], torch.tensor([0.0, 1.0, 1.0]))


EMPTY = {
    "bias_gelu": (torch.ones(3, 0), torch.ones(0)),
    "add_layer_norm": (torch.ones(3, 0), torch.ones(3, 0), torch.ones(0), torch.ones(0)),
    "embed_patches": (ROWS, IDS, torch.ones(0, 6), torch.ones(0), torch.ones(5, 0), 0.5, 0.5),
    "mixture_loss": (
        torch.ones(2, 0, 5, 8),
        torch.ones(2, 5, 6),
        torch.ones(5, 3, 2),
        3.0,
        0.1,
        0.1,
    ),
    "patch_loss": (torch.ones(2, 3, 0), ROWS[..., :0], IDS, True, 0.5, 0.5),
    "restore_tokens": (X[..., :0], IDS, torch.ones(0), torch.ones(5, 0), None),
    "restore_tokens of a prefix": (X[:, :0], IDS[:, :0], torch.ones(4), torch.ones(0, 4), X),
}


@pytest.mark.parametrize("name", EMPTY)
def test_tensors_without_elements(name):
    def results(dtype):
        args = [
            arg.to(dtype, copy=True).requires_grad_()
            if isinstance(arg, torch.Tensor) and arg.is_floating_point()
            else arg
            for arg in EMPTY[name]
        ]
        found = getattr(kernels, name.split()[0])(*args)
        found = found if isinstance(found, tuple) else (found,)
        inputs = [arg for arg in args if isinstance(arg, torch.Tensor) and arg.requires_grad]
        return [*found, *torch.autograd.grad(sum(out.sum() for out in found), inputs)]

    for ours, plain in zip(results(torch.float32), results(torch.float64), strict=True):
        torch.testing.assert_close(ours, plain, check_dtype=False, equal_nan=True)
