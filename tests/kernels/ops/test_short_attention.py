"""Frames that share a tile, extreme scores, dropout. The rest is in ``test_ops.py``."""

from __future__ import annotations

import pytest
import torch

from ivcl_fast.kernels._random import kept
from ivcl_fast.kernels.short_attention import _ref, short_attention
from tests.kernels.ops.conftest import DTYPES
from tests.kernels.ops.table import OPS, qkv
from tests.support.numerics import check_op, run_with_grads

op = OPS["short_attention"].op


@pytest.mark.parametrize("dtype", DTYPES)
def test_large_scores_stay_finite(dtype, device):
    x, _ = qkv((6, 12, 2, 16), dtype, device)
    x[..., :64] *= 60  # scores in the thousands: the softmax selects one key
    check_op(op, _ref, [x, 2])


@pytest.mark.parametrize("tokens", [12, 29])
def test_frames_do_not_mix(tokens, device):
    """Changing one frame changes no bit of the other frames' outputs and gradients."""
    x, _ = qkv((7, tokens, 2, 16), torch.float32, device)
    cotangent = [torch.randn(7, tokens, 32, device=device)]
    changed = x.clone()
    changed[3] += 1e3
    before, after = (run_with_grads(op, [y, 2], cotangent) for y in (x, changed))
    others = [0, 1, 2, 4, 5, 6]
    for b, a in zip(before[0] + before[1], after[0] + after[1], strict=True):
        assert torch.equal(b[others], a[others])
        assert not torch.equal(b[3], a[3])


def test_dropout_is_drawn_from_a_seed(device):
    x, _ = qkv((3, 12, 2, 16), torch.float32, device)
    one, two = (torch.tensor(seed, device=device) for seed in (1, 2))
    assert torch.equal(short_attention(x, 2, 0.2, one), short_attention(x, 2, 0.2, one))
    assert not torch.equal(short_attention(x, 2, 0.2, one), short_attention(x, 2, 0.2, two))
    assert torch.equal(short_attention(x, 2, 0.0, one), short_attention(x, 2))
    drawn = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        drawn += [short_attention(x, 2, 0.2), short_attention(x, 2, 0.2)]
    assert torch.equal(drawn[0], drawn[2]) and torch.equal(drawn[1], drawn[3])
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[4])


def test_nothing_but_dropout_changes_a_weight(device):
    """With equal scores and one value per key, the outputs are the weights that were kept."""
    tokens = 48
    x = torch.zeros(2, tokens, 3 * 2 * 48, device=device)
    x[..., 2 * 2 * 48 :] = torch.eye(tokens, device=device).repeat(1, 2)
    seed, dropout = torch.tensor(5, device=device), 0.25
    weights = short_attention(x, 2, dropout, seed).unflatten(2, (2, tokens)).transpose(1, 2)
    is_kept = kept(weights.shape, dropout, seed)
    torch.testing.assert_close(weights, is_kept / (tokens * (1 - dropout)))


@pytest.mark.parametrize(
    ("shape", "num_heads", "message"),
    [
        ((5, 96), 2, r"qkv: torch.float32 \(5, 96\) is not a float \[F, N, 3\*D\]"),
        ((2, 5, 96), 0, "num_heads: 0 does not divide"),
        ((2, 0, 96), 2, "qkv: 0 tokens are not 1 to"),
        ((2, 5, 3 * 129), 1, "num_heads: 1 gives heads of 129 columns, not 1 to 128"),
    ],
)
def test_refused_shapes(shape, num_heads, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        short_attention(torch.zeros(shape), num_heads)
