"""Ids in any order. The rest is in ``test_ops.py``."""

from __future__ import annotations

import torch

from tests.kernels.ops.table import OPS
from tests.support.numerics import check_op

OP = OPS["restore_tokens"]


def test_ids_in_any_order(device):
    x, ids, *others = OP.inputs((4, 40, 64, 2, 48), dtype=torch.float32, device=device)
    ids = torch.rand(4, 64, device=device).argsort(-1)[:, : ids.shape[1]]
    check_op(OP.fused, OP.plain, [x, ids, *others])
