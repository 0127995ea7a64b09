from __future__ import annotations

import pytest
import torch

from ivcl_fast.kernels import add_layer_norm, dispatches, layer_norm
from ivcl_fast.kernels.add_layer_norm import MAX_WIDTH, _ref, _ref_biased, _ref_norm
from tests.kernels.ops.conftest import DTYPES, HALF, INTERPRET
from tests.support.numerics import check_one_output, check_op

op = torch.ops.ivcl_fast.add_layer_norm.default
biased_op = torch.ops.ivcl_fast.add_layer_norm_biased.default
norm_op = torch.ops.ivcl_fast.layer_norm.default
EPS = 1e-6
NAMES = ("x", "residual", "weight", "bias")
SHAPES = [(1, 1), (1, 1, 60), (3, 5, 127), (2, 17, 768), (150, 60), (2, 1023), (1, 4096)]


def inputs(shape, dtype, device):
    parameters = [torch.randn(shape[-1], dtype=dtype, device=device) for _ in range(2)]
    return [torch.randn(shape, dtype=dtype, device=device) for _ in range(2)] + parameters


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_parity(shape, dtype, device):
    check_op(op, _ref, [*inputs(shape, dtype, device), EPS])


@pytest.mark.parametrize("stream", [HALF, torch.float32])
@pytest.mark.parametrize("shape", [(1,), (3, 5, 127), (150, 60)])
def test_parity_with_the_bias_of_x(shape, stream, device):
    """The bias's gradient is that of PyTorch's sum, also where several programs share the rows."""
    x, residual, weight, bias = inputs(shape, HALF, device)
    parameters = [t.float() for t in (weight.flip(0), weight, bias)]
    check_op(biased_op, _ref_biased, [x, parameters[0], residual.to(stream), *parameters[1:], EPS])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_parity_without_residual(shape, dtype, device):
    x, _, weight, bias = inputs(shape, dtype, device)
    check_op(norm_op, _ref_norm, [x, weight, bias, EPS, dtype])


@pytest.mark.parametrize("stream", [HALF, torch.float32])
@pytest.mark.parametrize("parameters", [HALF, torch.float32])
def test_mixed_dtypes(stream, parameters, device):
    x, residual, weight, bias = inputs((3, 5, 128), HALF, device)
    args = [x, residual.to(stream), weight.to(parameters), bias.to(parameters), EPS]
    total, normed = op(*args)
    assert (total.dtype, normed.dtype) == (stream, HALF)
    check_op(op, _ref, args)


def test_layer_norm_to_another_dtype(device):
    x, _, weight, bias = inputs((3, 5, 128), torch.float32, device)
    half = layer_norm(x, weight, bias, EPS, dtype=HALF)
    assert torch.equal(half, layer_norm(x, weight, bias, EPS).to(HALF))
    check_op(
        lambda *args: norm_op(*args, EPS, HALF),
        lambda *args: _ref_norm(*args, EPS, HALF),
        [x, weight, bias],
    )


def test_the_norm_is_that_of_the_sum_as_it_is_stored(device):
    """PyTorch's, ties to even. Backward sees no other, and is the gradient of this norm."""
    x, residual, weight, bias = inputs((5, 96), HALF, device)
    total, normed = op(x.float(), residual, weight, bias, EPS)
    assert torch.equal(total, x + residual)
    torch.testing.assert_close(normed, norm_op(total, weight, bias, EPS, torch.float32))


def test_statistics_survive_a_large_mean(device):
    x, residual, weight, bias = inputs((4, 768), torch.float32, device)
    args = (x + 1000, residual, weight, bias)
    exact = _ref(*(t.double() for t in args), EPS)[1]
    # Sum and mean are each rounded to half an ulp of 1000, and the mean's sum a little more often.
    # E[x^2] - E[x]^2 would be off by 1000^2 * eps, a tenth of the variance.
    bound = 4 * 1000 * torch.finfo(torch.float32).eps * weight.abs().max()
    assert (op(*args, EPS)[1].double() - exact).abs().max() < bound


def test_constant_rows_stay_finite(device):
    x, _, weight, bias = inputs((3, 96), torch.float32, device)
    check_op(op, _ref, [torch.ones_like(x), torch.ones_like(x), weight, bias, EPS])


def test_no_epsilon(device):
    """Rows that fill no block of rows, so that a kernel computes some beyond the last."""
    x, residual, weight, bias = inputs((3, 96), torch.float32, device)
    check_op(op, _ref, [x, residual, weight, bias, 0.0])
    check_op(biased_op, _ref_biased, [x, weight.flip(0), residual, weight, bias, 0.0])


def test_non_contiguous(device):
    x, residual, weight, bias = inputs((6, 40, 64), torch.float32, device)
    views = [t.transpose(0, 1)[::2] for t in (x, residual)]
    check_op(op, _ref, [*views, weight.expand(2, -1)[1], bias.repeat_interleave(2)[::2], EPS])


@pytest.mark.parametrize("used", [0, 1])
@pytest.mark.parametrize("stream", [HALF, torch.float32])
def test_gradients_with_one_output_unused(used, stream, device):
    x, residual, weight, bias = inputs((5, 60), HALF, device)
    check_one_output(op, _ref, [x, residual.to(stream), weight, bias, EPS], used)


def test_no_rows(device):
    x, residual, weight, bias = inputs((0, 64), torch.float32, device)
    leaves = [t.requires_grad_() for t in (x, residual, weight, bias)]
    _, normed = op(*leaves, EPS)
    _, _, dweight, dbias = torch.autograd.grad(normed.sum(), leaves)
    assert normed.shape == (0, 64) and not dweight.any() and not dbias.any()


def test_gradcheck():
    args = [t.requires_grad_() for t in inputs((4, 6), torch.float64, "cpu")]
    torch.autograd.gradcheck(lambda *a: _ref(*a, EPS), args)
    torch.autograd.gradcheck(lambda *a: _ref_norm(*a, EPS, torch.float64), args[1:])


def test_opcheck(device):
    x, residual, weight, bias = (
        t.requires_grad_() for t in inputs((3, 5, 32), torch.float32, device)
    )
    torch.library.opcheck(op, (x, residual, weight, bias, EPS))
    torch.library.opcheck(norm_op, (x, weight, bias, EPS, HALF))
    torch.library.opcheck(biased_op, (x, bias, residual, weight, bias, EPS))


@pytest.mark.skipif(INTERPRET, reason="the interpreter is slow under a compiler")
def test_fullgraph(device):
    args = inputs((3, 5, 32), torch.float32, device)

    def blocks(function):
        def run(x, residual, weight, bias):
            total, normed = function(x, residual, weight, bias, EPS)
            return function(normed.sin(), total, weight, bias, EPS)[1]  # the last sum is unused

        return run

    check_op(torch.compile(blocks(op), fullgraph=True), blocks(_ref), args)


def test_public_functions(device):
    x, residual, weight, bias = inputs((3, 5, 96), torch.float32, device)
    total, normed = add_layer_norm(x, residual, weight, bias)
    torch.testing.assert_close(total, x + residual)
    torch.testing.assert_close(normed, layer_norm(total, weight, bias))
    biased = add_layer_norm(x, residual, weight, bias, x_bias=weight)
    torch.testing.assert_close(biased, add_layer_norm(x + weight, residual, weight, bias))


@pytest.mark.skipif(not INTERPRET, reason="only Triton kernels have a widest row")
def test_too_wide_rows_run_in_pytorch():
    before = dispatches()
    layer_norm(torch.randn(1, MAX_WIDTH + 1), torch.ones(MAX_WIDTH + 1), torch.ones(MAX_WIDTH + 1))
    assert dispatches() == before


@pytest.mark.parametrize("name", ["residual", "weight", "bias", "x_bias"])
def test_wrong_shape_is_named(name):
    args = dict(zip(NAMES, inputs((2, 4), torch.float32, "cpu"), strict=True))
    args["x_bias"] = args["bias"]
    args[name] = torch.randn(3)
    with pytest.raises(ValueError, match=rf"{name}: shape \(3,\)"):
        add_layer_norm(**args)
