"""What is special about the norms; the rest is in ``test_ops.py``."""

from __future__ import annotations

import pytest
import torch

from ivcl_fast.kernels import layer_norm
from ivcl_fast.kernels.add_layer_norm import _ref, _ref_biased, _ref_norm
from tests.kernels.ops.conftest import HALF
from tests.kernels.ops.table import EPS, OPS
from tests.support.numerics import check_one_output, check_op

op, biased_op, norm_op = (
    OPS[name].op for name in ("add_layer_norm", "add_layer_norm, biased", "layer_norm")
)


def inputs(shape, dtype, device):
    return OPS["add_layer_norm"].inputs(shape, dtype=dtype, device=device)


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


def test_rows_without_variance_and_without_epsilon(device):
    """Rows that fill no block of rows, so that a kernel computes some beyond the last."""
    x, residual, weight, bias = inputs((3, 96), torch.float32, device)
    check_op(op, _ref, [torch.ones_like(x), torch.ones_like(x), weight, bias, EPS])
    check_op(op, _ref, [x, residual, weight, bias, 0.0])
    check_op(biased_op, _ref_biased, [x, weight.flip(0), residual, weight, bias, 0.0])


@pytest.mark.parametrize("used", [0, 1])
@pytest.mark.parametrize("stream", [HALF, torch.float32])
def test_gradients_with_one_output_unused(used, stream, device):
    x, residual, weight, bias = inputs((5, 60), HALF, device)
    check_one_output(op, _ref, [x, residual.to(stream), weight, bias, EPS], used)
