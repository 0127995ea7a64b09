from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ivcl_fast.kernels import add_rms_norm, dispatches, rms_norm
from ivcl_fast.kernels.add_layer_norm import MAX_WIDTH
from ivcl_fast.kernels.add_rms_norm import _ref, _ref_norm
from tests.kernels.ops.conftest import DTYPES, HALF, INTERPRET
from tests.support.numerics import check_one_output, check_op

op = torch.ops.ivcl_fast.add_rms_norm.default
norm_op = torch.ops.ivcl_fast.rms_norm.default
EPS = 1e-6
# In a row of one number the gradient is 0 but for the epsilon, and the error that of its rounding.
SHAPES = [(1, 2), (1, 1, 60), (3, 5, 127), (2, 17, 768), (150, 60), (2, 1023), (1, 4096)]


def inputs(shape, dtype, device):
    x, residual = (torch.randn(shape, dtype=dtype, device=device) for _ in range(2))
    return [x, residual, torch.randn(shape[-1], dtype=dtype, device=device)]


def test_reference_is_the_definition():
    x, _, weight = inputs((3, 12), torch.float64, "cpu")
    expected = weight * x / ((x * x).mean(-1, keepdim=True) + EPS).sqrt()
    torch.testing.assert_close(_ref_norm(x, weight, EPS, x.dtype), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_parity(shape, dtype, device):
    check_op(op, _ref, [*inputs(shape, dtype, device), EPS])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_parity_without_residual(shape, dtype, device):
    x, _, weight = inputs(shape, dtype, device)
    check_op(norm_op, _ref_norm, [x, weight, EPS, dtype])


@pytest.mark.parametrize("stream", [HALF, torch.float32])
@pytest.mark.parametrize("parameters", [HALF, torch.float32])
def test_mixed_dtypes(stream, parameters, device):
    x, residual, weight = inputs((3, 5, 128), HALF, device)
    args = [x, residual.to(stream), weight.to(parameters), EPS]
    total, normed = op(*args)
    assert (total.dtype, normed.dtype) == (stream, HALF)
    check_op(op, _ref, args)


def test_rms_norm_to_another_dtype(device):
    x, _, weight = inputs((3, 5, 128), torch.float32, device)
    half = rms_norm(x, weight, EPS, dtype=HALF)
    assert torch.equal(half, rms_norm(x, weight, EPS).to(HALF))
    check_op(
        lambda *args: norm_op(*args, EPS, HALF),
        lambda *args: _ref_norm(*args, EPS, HALF),
        [x, weight],
    )


@pytest.mark.parametrize("eps", [0.0, 1e-2])
def test_epsilon(eps, device):
    """Rows that fill no block of rows, so that a kernel computes some beyond the last."""
    x, residual, weight = inputs((3, 96), torch.float32, device)
    check_op(op, _ref, [x, residual, weight, eps])


def test_rows_of_zeros(device):
    x, _, weight = inputs((3, 96), torch.float32, device)
    check_op(norm_op, _ref_norm, [torch.zeros_like(x), weight, EPS, x.dtype])


def test_non_contiguous(device):
    x, residual, weight = inputs((6, 40, 64), torch.float32, device)
    views = [t.transpose(0, 1)[::2] for t in (x, residual)]
    check_op(op, _ref, [*views, weight.expand(2, -1)[1], EPS])


@pytest.mark.parametrize("used", [0, 1])
@pytest.mark.parametrize("stream", [HALF, torch.float32])
def test_gradients_with_one_output_unused(used, stream, device):
    x, residual, weight = inputs((5, 60), HALF, device)
    check_one_output(op, _ref, [x, residual.to(stream), weight, EPS], used)


def test_no_rows(device):
    leaves = [t.requires_grad_() for t in inputs((0, 64), torch.float32, device)]
    _, normed = op(*leaves, EPS)
    _, _, dweight = torch.autograd.grad(normed.sum(), leaves)
    assert normed.shape == (0, 64) and not dweight.any()


def test_gradcheck():
    args = [t.requires_grad_() for t in inputs((4, 6), torch.float64, "cpu")]
    torch.autograd.gradcheck(lambda *a: _ref(*a, EPS), args)


def test_opcheck(device):
    x, residual, weight = (t.requires_grad_() for t in inputs((3, 5, 32), torch.float32, device))
    torch.library.opcheck(op, (x, residual, weight, EPS))
    torch.library.opcheck(norm_op, (x, weight, EPS, HALF))


@pytest.mark.skipif(INTERPRET, reason="the interpreter is slow under a compiler")
def test_fullgraph(device):
    args = inputs((3, 5, 32), torch.float32, device)

    def blocks(function):
        def run(x, residual, weight):
            total, normed = function(x, residual, weight, EPS)
            return function(normed.sin(), total, weight, EPS)[1]  # the last sum is unused

        return run

    check_op(torch.compile(blocks(op), fullgraph=True), blocks(_ref), args)


def test_public_functions(device):
    x, residual, weight = inputs((3, 5, 96), torch.float32, device)
    total, normed = add_rms_norm(x, residual, weight)
    torch.testing.assert_close(total, x + residual)
    torch.testing.assert_close(normed, F.rms_norm(total, weight.shape, weight, EPS))
    torch.testing.assert_close(normed, rms_norm(total, weight))


@pytest.mark.skipif(not INTERPRET, reason="only Triton kernels have a widest row")
def test_too_wide_rows_run_in_pytorch():
    before = dispatches()
    rms_norm(torch.randn(1, MAX_WIDTH + 1), torch.ones(MAX_WIDTH + 1))
    assert dispatches() == before


@pytest.mark.parametrize("name", ["residual", "weight"])
def test_wrong_shape_is_named(name):
    args = dict(zip(("x", "residual", "weight"), inputs((2, 4), torch.float32, "cpu"), strict=True))
    args[name] = torch.randn(3)
    with pytest.raises(ValueError, match=rf"{name}: shape \(3,\)"):
        add_rms_norm(**args)
