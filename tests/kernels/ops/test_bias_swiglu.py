from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ivcl_fast.kernels import bias_swiglu as public
from ivcl_fast.kernels.bias_swiglu import _ref
from tests.kernels.ops.conftest import DTYPES, HALF, INTERPRET
from tests.support.numerics import check_op

op = torch.ops.ivcl_fast.bias_swiglu.default
packed = pytest.mark.parametrize("packed", [True, False], ids=["packed", "separate"])


def plain(x, bias, value=None):
    """With PyTorch's SiLU, which rounds once."""
    gate, value = x.chunk(2, dim=-1) if value is None else (x, value)
    gate_bias, value_bias = bias.to(x.dtype).chunk(2)
    return F.silu(gate + gate_bias) * (value + value_bias)


def inputs(shape, dtype, device, packed):
    """Arguments for an output of ``shape``."""
    *lead, width = shape
    tensors = [2 * torch.randn(*lead, 2 * width, dtype=dtype, device=device)]
    tensors.append(torch.randn(2 * width, dtype=dtype, device=device))
    if packed:
        return tensors
    gate, value = (half.clone() for half in tensors[0].chunk(2, dim=-1))
    return [gate, tensors[1], value]


@packed
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 1, 60), (3, 5, 127), (2, 17, 768), (300, 60), (2, 1023)]
)
def test_parity(shape, dtype, packed, device):
    check_op(op, plain, inputs(shape, dtype, device, packed))


def test_the_order_of_the_halves(device):
    """Gates are the first half, as in timm's SwiGLUPacked, and both forms agree."""
    x, bias = inputs((3, 5, 64), torch.float32, device, packed=True)
    gate, value = (x + bias).chunk(2, dim=-1)
    torch.testing.assert_close(public(x, bias), F.silu(gate) * value)
    gate, value = x.chunk(2, dim=-1)  # not contiguous
    assert torch.equal(public(gate, bias, value), public(x, bias))


@packed
def test_mixed_dtypes(packed, device):
    x, bias, *value = inputs((3, 5, 128), HALF, device, packed)
    check_op(op, _ref, [x, bias.float(), *value])


@packed
def test_non_contiguous(packed, device):
    x, bias, *value = inputs((6, 40, 64), torch.float32, device, packed)
    x, *value = (t.transpose(0, 1)[::2] for t in (x, *value))
    check_op(op, _ref, [x, bias, *value])


def test_extremes_stay_finite(device):
    gate = torch.tensor([[-1e15, -1e4, -30.0, -8.0, 0.0, 8.0, 30.0, 1e4, 1e15]], device=device)
    check_op(op, _ref, [gate, torch.zeros(18, device=device), torch.ones_like(gate)])


@packed
def test_gradcheck(packed):
    args = inputs((4, 6), torch.float64, "cpu", packed)
    torch.autograd.gradcheck(_ref, [arg.requires_grad_() for arg in args])


@packed
def test_opcheck(packed, device):
    args = inputs((3, 5, 32), torch.float32, device, packed)
    torch.library.opcheck(op, tuple(arg.requires_grad_() for arg in args))


@pytest.mark.skipif(INTERPRET, reason="the interpreter is slow under a compiler")
def test_fullgraph(device):
    x, bias = inputs((3, 5, 32), torch.float32, device, packed=True)
    compiled = torch.compile(lambda x, b: public(x, b).square(), fullgraph=True)
    check_op(compiled, lambda x, b: _ref(x, b).square(), [x, bias])


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 4), (2,)), r"bias: shape \(2,\) is not \[4\]"),
        (((2, 4), (4,), (2, 4)), r"bias: shape \(4,\) is not \[8\]"),
        (((2, 5), (5,)), "x: width 5 is odd"),
        (((), (2,)), "x: shape"),
        (((2, 4), (8,), (2, 3)), r"value: torch.float32 \(2, 3\) is not"),
    ],
)
def test_arguments_that_do_not_fit_are_named(shapes, message, device):
    args = [torch.randn(shape, device=device) for shape in shapes]
    with pytest.raises(ValueError, match=message):
        public(*args)
    with pytest.raises((ValueError, RuntimeError), match=message.split()[0]):
        op(*args)
