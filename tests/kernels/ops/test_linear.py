"""Linear layers: gradients of both parameters in one pass, and weights that are cast together."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ivcl_fast.kernels import _ext, dispatches, linear
from ivcl_fast.kernels.linear import _ref, cast_together, weights_to_cast
from tests.kernels.ops.conftest import check_threads, needs_cpp
from tests.support.numerics import assert_parity, check_op

op = torch.ops.ivcl_fast.linear_gradients.default
SHAPES = [
    (1, 1, 1), (3, 5, 7), (31, 16, 60), (257, 127, 33), (300, 96, 130), (513, 64, 65),
    (600, 65, 530),
]  # fmt: skip
"""Tokens, inputs, outputs; the last are more than one block of tokens and of outputs."""
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture
def as_on_amx(monkeypatch):
    """Use the loaded object, whatever it is, as the one for AMX is used."""
    if _ext.MISSING is None:
        monkeypatch.setattr(_ext, "ISA", "amx")


def inputs(tokens, width, outputs, dtype):
    return torch.randn(tokens, outputs, dtype=dtype), torch.randn(tokens, width, dtype=dtype)


@pytest.mark.parametrize("to", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients(shape, dtype, to):
    dy, x = inputs(*shape, dtype)
    exact = _ref(dy.double(), x.double(), torch.float64)
    for got, same, true in zip(op(dy, x, to), _ref(dy, x, to), exact, strict=True):
        assert_parity(got, same, true)


@pytest.mark.parametrize("dtype", DTYPES)
def test_non_contiguous_batched_and_empty(dtype):
    dy, x = inputs(2 * 3 * 10, 6, 4, dtype)
    expected = _ref(dy, x, torch.float32)
    dy, x = dy.reshape(2, 3, 10, 4), x.reshape(2, 3, 10, 6)
    odd = dy.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
    assert not odd.is_contiguous()
    for got, same in zip(op(odd, x, torch.float32), expected, strict=True):
        torch.testing.assert_close(got, same, rtol=1e-2, atol=1e-1)
    for got in op(dy[:0], x[:0], dtype):
        assert got.dtype == dtype and not got.any()


@needs_cpp
@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_for_any_number_of_threads(dtype):
    dy, x = inputs(301 * 17, 96, 300, dtype)
    check_threads(lambda: op(dy, x, torch.float32))


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("parameters", DTYPES)
def test_layer_parity(parameters, with_bias, as_on_amx):
    x = torch.randn(2, 17, 24, dtype=torch.bfloat16)
    args = [x, torch.randn(40, 24, dtype=parameters) * 0.2]
    args += [torch.randn(40, dtype=parameters)] if with_bias else []

    def under_autocast(*args):
        weights = [] if parameters == torch.bfloat16 else args[1:]
        with torch.autocast("cpu", torch.bfloat16), cast_together(weights, torch.bfloat16):
            return linear(*args)

    def ref(x, weight, *bias):
        return F.linear(x, weight.to(x.dtype), *(b.to(x.dtype) for b in bias))

    check_op(under_autocast, ref, args)


@needs_cpp
def test_float32_weights_use_the_op_where_they_are_cast_together(as_on_amx):
    """Elsewhere autocast's copy of a weight serves all calls, and a copy in each costs more."""
    layer, x = torch.nn.Linear(8, 8), torch.randn(4, 8).bfloat16()
    for weights, calls in (([], 0), (weights_to_cast(layer), 1)):
        before = dispatches()
        with torch.autocast("cpu", torch.bfloat16), cast_together(weights, torch.bfloat16):
            linear(x, layer.weight, layer.bias).sum().backward()
        assert (dispatches() - before)["linear_gradients", "cpp"] == calls
    with pytest.raises(RuntimeError, match="same dtype"):
        linear(x, layer.weight, layer.bias)


def test_second_derivatives_of_a_weight_that_is_cast(as_on_amx):
    x, weight = torch.ones(3, 6).bfloat16().requires_grad_(), torch.ones(4, 6, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16), cast_together([weight], torch.bfloat16):
        (dx,) = torch.autograd.grad(linear(x, weight).sum(), x, create_graph=True)
        (found,) = torch.autograd.grad(dx.sum(), weight)
    assert torch.equal(found, torch.full((4, 6), 3.0))
