"""First weights of a model."""

from __future__ import annotations

import torch

from ivcl_fast import reference
from ivcl_fast.models.backbone import resize_embedding, zero_branches
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


def test_times_are_interpolated_between_the_first_and_the_last():
    times = torch.tensor([[0.0, 5.0], [1.0, 5.0], [3.0, 5.0]])
    resized = resize_embedding("temporal.time_embed", times, torch.Size([5, 2]))
    torch.testing.assert_close(resized[:, 0], torch.tensor([0.0, 0.5, 1.0, 2.0, 3.0]))
    assert (resized[:, 1] == 5).all()
    assert torch.equal(resize_embedding("time_embed", times, torch.Size([1, 2])), times[-1:])


def test_positions_keep_their_rows_and_columns_and_are_smoothed():
    """A third of the columns are 1: so is the mean of what takes the place of three of them."""
    column = torch.arange(9).expand(9, 9)
    grid = torch.stack([(column % 3 == 1).float(), column.T.float()], dim=-1).view(1, 81, 2)
    resized = resize_embedding("pos_embed", grid, torch.Size([1, 9, 2])).view(3, 3, 2)
    assert (resized[..., 0] - 1 / 3).abs().max() < 0.1
    assert (resized[..., 1] - torch.tensor([[1.0], [4.0], [7.0]])).abs().max() < 0.1
