"""Patches without variance, loss scales, wrong ids. The rest is in ``test_ops.py``."""

from __future__ import annotations

import pytest
import torch

from ivcl_fast.kernels import patch_loss
from tests.kernels.ops.conftest import DTYPES, INTERPRET
from tests.kernels.ops.table import MEAN, OPS, STD
from tests.support.numerics import assert_parity, check_op, run_with_grads

OP = OPS["patch_loss"]


def inputs(*shape, dtype=torch.float32, device):
    return OP.inputs(shape, dtype=dtype, device=device)


def test_patches_without_variance(device):
    """One frame's patches have no variance, the other's differ in one pixel."""
    pred, rows, ids = inputs(2, 4, 4, 192, device=device)
    rows[0], rows[1] = 201, 77
    rows[1, :, 5] = 78
    check_op(OP.fused, OP.plain, [pred, rows, ids])


@pytest.mark.parametrize("dtype", DTYPES)
def test_loss_scale_reaches_a_small_gradient(dtype, device):
    """2 / count underflows in float16; with a loss scale of 65536 the gradient must be exact."""
    args = inputs(12, 64, 48, 192, dtype=dtype, device=device)
    scale = [torch.tensor(65536.0, device=device)]
    (_, [got]), (_, [same]) = (run_with_grads(f, args, scale) for f in (OP.fused, OP.plain))
    _, [exact] = run_with_grads(OP.plain, [args[0].double(), *args[1:]], scale)
    assert_parity(got, same, exact, "gradient")
    assert (got.double() - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.skipif(INTERPRET, reason="kernels do not check ids")
@pytest.mark.parametrize("bad", [8, -1])
def test_ids_out_of_range_are_refused_on_a_cpu(bad):
    pred, rows, ids = inputs(2, 8, 3, 48, device="cpu")
    ids[0, 1] = bad
    with pytest.raises(RuntimeError, match="out of bounds"):
        patch_loss(pred, rows, ids, True, MEAN, STD)
