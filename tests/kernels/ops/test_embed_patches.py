"""Ids that repeat, and autocast. The rest is in ``test_ops.py``."""

from __future__ import annotations

import torch

from ivcl_fast.kernels import embed_patches
from ivcl_fast.kernels.embed_patches import _ref
from tests.kernels.ops.conftest import HALF
from tests.kernels.ops.table import MEAN, OPS, STD
from tests.support.numerics import check_op, run_with_grads

OP = OPS["embed_patches"]


def inputs(*shape, device):
    return OP.inputs(shape, dtype=torch.float32, device=device)


def test_ids_expanded_and_repeated(device):
    rows, _, *parameters = inputs(4, 6, 6, 48, 64, device=device)
    for ids in (torch.arange(6, device=device), torch.tensor([2, 5, 2], device=device)):
        check_op(OP.fused, OP.plain, [rows, ids.expand(4, -1), *parameters])


def test_autocast_sets_the_dtype(device):
    rows, ids, *parameters = inputs(2, 8, 3, 48, 64, device=device)
    in_half = _ref(rows, ids, *parameters, MEAN, STD, HALF)
    with torch.autocast(device, HALF):
        outputs, grads = run_with_grads(
            lambda *p: embed_patches(rows, ids, *p, MEAN, STD),
            parameters, [torch.ones_like(in_half)],
        )  # fmt: skip
        full = embed_patches(rows, ids, *parameters, MEAN, STD, out_dtype=torch.float32)
    assert outputs[0].dtype == HALF and [g.dtype for g in grads] == [torch.float32] * 3
    torch.testing.assert_close(outputs[0], in_half, atol=0.04, rtol=0.02)
    torch.testing.assert_close(full, _ref(rows, ids, *parameters, MEAN, STD, torch.float32))
