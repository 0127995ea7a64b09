from __future__ import annotations

import pytest
import torch

from ivcl_fast.kernels import bias_gelu as public
from ivcl_fast.kernels.bias_gelu import _ref
from tests.kernels.ops.conftest import DTYPES, HALF, INTERPRET
from tests.support.numerics import check_op

op = torch.ops.ivcl_fast.bias_gelu.default


def inputs(shape, dtype, device):
    return [
        2 * torch.randn(shape, dtype=dtype, device=device),
        torch.randn(shape[-1], dtype=dtype, device=device),
    ]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 1, 60), (3, 5, 127), (2, 17, 768), (300, 60), (2, 1023)]
)
def test_parity(shape, dtype, device):
    check_op(op, _ref, inputs(shape, dtype, device))


def test_mixed_dtypes(device):
    x, bias = inputs((3, 5, 128), HALF, device)
    check_op(op, _ref, [x, bias.float()])


def test_non_contiguous(device):
    x, bias = inputs((6, 40, 64), torch.float32, device)
    check_op(op, _ref, [x.transpose(0, 1)[::2], bias])


def test_extremes_stay_finite(device):
    x = torch.tensor([[-1e15, -1e4, -30.0, -8.0, 0.0, 8.0, 30.0, 1e4, 1e15]], device=device)
    check_op(op, _ref, [x, torch.zeros(9, device=device)])


def test_the_gradient_beyond_the_knee(device):
    """For large u, Phi(u) is 1 but for a tail that 1 - Phi(u) would round away."""
    x = torch.linspace(2, 9, 64, device=device)[None]
    check_op(op, _ref, [x, torch.zeros(64, device=device)])


def test_gradcheck():
    x, bias = inputs((4, 6), torch.float64, "cpu")
    torch.autograd.gradcheck(_ref, (x.requires_grad_(), bias.requires_grad_()))


def test_opcheck(device):
    x, bias = inputs((3, 5, 32), torch.float32, device)
    torch.library.opcheck(op, (x.requires_grad_(), bias.requires_grad_()))


@pytest.mark.skipif(INTERPRET, reason="the interpreter is slow under a compiler")
def test_fullgraph(device):
    x, bias = inputs((3, 5, 32), torch.float32, device)
    compiled = torch.compile(lambda x, b: public(op(x, b), b).square(), fullgraph=True)
    check_op(compiled, lambda x, b: _ref(_ref(x, b), b).square(), [x, bias])


def test_wrong_bias_is_named():
    with pytest.raises(ValueError, match=r"bias: shape \(3,\)"):
        public(torch.randn(2, 4), torch.randn(3))
