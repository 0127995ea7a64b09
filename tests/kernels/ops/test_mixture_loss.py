"""Frames and shares, their gradients, and large logits. The rest is in ``test_ops.py``."""

from __future__ import annotations

import pytest
import torch

from ivcl_fast.kernels import mixture_loss
from ivcl_fast.kernels.mixture_loss import _ref
from tests.kernels.ops.conftest import DTYPES
from tests.kernels.ops.table import HOW, OPS
from tests.support.numerics import assert_parity, check_op

OP = OPS["mixture_loss"]


def inputs(*shape, dtype=torch.float32, device):
    drawn, (true,), background = OP.inputs(shape, dtype=dtype, device=device)
    return [drawn, true, background]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 2, 8, 3), (2, 17, 4, 33), (2, 2, 70, 9)])
def test_frames_and_shares(shape, dtype, device):
    args = inputs(*shape, dtype=dtype, device=device)
    exact = _ref(*(x.double() for x in args), *HOW)
    for ours, same, true in zip(OP.op(*args, *HOW), _ref(*args, *HOW), exact, strict=True):
        assert_parity(ours, same, true)
    assert (OP.op(*args, *HOW)[2].sum(dim=1) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("outputs", [[0], [1], [2], [0, 1], [0, 2]], ids=str)
def test_gradients_of_frames_and_shares(outputs, device):
    """A user's own loss may be of these, and the truth may be learnt, too."""
    args = [x.requires_grad_() for x in inputs(2, 3, 4, 5, device=device)]
    ours, expected = (
        torch.autograd.grad(
            sum(function(*args, *HOW)[i].square().sum() for i in outputs), args,
            materialize_grads=True,
        )
        for function in (mixture_loss, _ref)
    )  # fmt: skip
    torch.testing.assert_close(ours, expected)


def test_large_logits(device):
    """A slot that claims everything, and one that claims nothing."""
    drawn, true, background = inputs(2, 3, 4, 5, device=device)
    drawn.view(2, 3, 4, 4, 5)[:, 0, :, 3] = 300
    drawn.view(2, 3, 4, 4, 5)[:, 1, :, 3] = -300
    check_op(OP.fused, OP.plain, [drawn, [true], background])
    shares = OP.op(drawn, true, background, *HOW)[2]
    assert (shares[:, 0] == 1).all() and (shares[:, 1:] < 1e-30).all()
