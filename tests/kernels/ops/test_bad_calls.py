"""Ops that are called directly check the arguments that public functions have checked already."""

from __future__ import annotations

import pytest
import torch

from ivcl_fast import kernels
from ivcl_fast.kernels import restore_tokens
from ivcl_fast.kernels._arguments import Rule, check_arguments
from tests.kernels.ops.conftest import INTERPRET, implementation

ops = torch.ops.ivcl_fast
X, ROWS = torch.ones(2, 3, 4), torch.zeros(2, 5, 6, dtype=torch.uint8)
IDS = torch.tensor([[0, 1, 2], [2, 3, 4]])
BAD = {
    "bias": lambda: ops.bias_gelu(X, torch.ones(3)),
    "dy": lambda: ops.bias_gelu_backward(X.long(), X, torch.ones(4)),
    "dsum": lambda: ops.add_layer_norm_backward(
        torch.ones(()), X, X, torch.ones(4), 1e-6, X.dtype
    ),
    "dout": lambda: ops.restore_tokens_backward(X, IDS, X[0, 0], torch.ones(5, 4)),
    "ids": lambda: ops.patch_loss(torch.ones(2, 3, 6), ROWS, IDS.int(), True, 0.5, 0.5, True),
    "shares": lambda: ops.mixture_loss_backward(
        torch.ones(()), torch.ones(2, 4, 5, 8), torch.ones(2, 5, 6), torch.ones(5, 3, 2),
        torch.ones(2, 5, 6), torch.ones(2, 4, 5, 2), 3.0, 0.1, 0.1,
    ),
    "pos": lambda: ops.embed_patches(
        ROWS, IDS, torch.ones(4, 6), torch.ones(4), torch.ones(4, 4), 0.5, 0.5, X.dtype
    ),
    "seed": lambda: ops.short_attention(torch.ones(2, 3, 12), 2, 0.1),
    "num_keep": lambda: ops.sample_masks(torch.arange(3), 4, 5),
}  # fmt: skip


@pytest.mark.parametrize("argument", BAD)
def test_the_error_names_the_argument(argument):
    with pytest.raises((RuntimeError, ValueError), match=f"^{argument}: "):
        BAD[argument]()


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
        torch.ones(2, 0, 5, 8), torch.ones(2, 5, 6), torch.ones(5, 3, 2), 3.0, 0.1, 0.1
    ),
    "patch_loss": (torch.ones(2, 3, 0), ROWS[..., :0], IDS, True, 0.5, 0.5),
    "restore_tokens": (X[..., :0], IDS, torch.ones(0), torch.ones(5, 0), None),
    "restore_tokens of a prefix": (X[:, :0], IDS[:, :0], torch.ones(4), torch.ones(0, 4), X),
}  # fmt: skip


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
