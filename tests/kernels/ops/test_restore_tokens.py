"""Order of ids, and the reference decoder. The rest is in ``test_ops.py``."""

from __future__ import annotations

import torch

from ivcl_fast import reference
from ivcl_fast.kernels import restore_tokens
from tests.kernels.ops.table import OPS
from tests.support.numerics import check_op

OP = OPS["restore_tokens"]


def test_ids_in_any_order(device):
    x, ids, *others = OP.inputs((4, 40, 64, 2, 48), dtype=torch.float32, device=device)
    ids = torch.rand(4, 64, device=device).argsort(-1)[:, : ids.shape[1]]
    check_op(OP.fused, OP.plain, [x, ids, *others])


def test_equals_the_reference_decoder(device):
    """The lines of its forward between ``embed`` and the blocks."""
    x, ids, mask_token, pos, prefix = OP.inputs(
        (3, 5, 16, 2, 96), dtype=torch.float32, device=device
    )
    index = ids.unsqueeze(-1).expand_as(x)
    canvas = mask_token.view(1, 1, -1).repeat(len(x), len(pos), 1).scatter(1, index, x) + pos
    want = torch.cat([prefix, canvas], dim=1)
    assert torch.equal(restore_tokens(x, ids, mask_token, pos, prefix), want)
    hidden = reference.complement(ids, 16)
    got = reference.take_rows(restore_tokens(x, ids, mask_token, pos), hidden)
    assert torch.equal(got, mask_token + pos[hidden])
