"""First weights of a model."""

from __future__ import annotations

import torch

from ivcl_fast import reference
from ivcl_fast.models.backbone import zero_branches
from tests.support.small_models import config


def test_blocks_begin_as_the_identity():
    torch.manual_seed(0)
    model = reference.IVCL(config())
    blocks = [part for part in model.modules() if isinstance(part, reference.Block)]
    clips = [torch.randn(2, 5, block.norm1.weight.numel()) for block in blocks]
    assert not any(torch.equal(block(x), x) for block, x in zip(blocks, clips, strict=True))
    zero_branches(model)
    assert all(torch.equal(block(x), x) for block, x in zip(blocks, clips, strict=True))
    assert any(p.abs().max() > 0 for p in blocks[0].parameters() if p.ndim > 1)
