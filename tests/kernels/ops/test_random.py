"""The random numbers of dropout: as many are dropped as asked for, and pairs are independent."""

from __future__ import annotations

import pytest
import torch

from ivcl_fast.kernels._random import hashes, kept

SHAPE = 16, 4, 50, 50


def test_numbers_stay_what_they_are():
    """They are part of what a seed stands for."""
    assert hashes(torch.tensor(0), 2).tolist() == [-2152535657050944081, 7960286522194355700]
    bits = kept((1, 1, 2, 8), 0.5, torch.tensor(3)).int().flatten(2)
    assert bits.tolist() == [[[0, 0, 1, 0, 1, 1, 0, 0, 1, 0, 1, 0, 0, 1, 0, 0]]]


@pytest.mark.parametrize("dropout", [0.1, 0.5, 0.9])
def test_the_share_that_is_dropped(dropout):
    is_kept = kept(SHAPE, dropout, torch.tensor(11)).double()
    error = (dropout * (1 - dropout) / is_kept.numel()) ** 0.5
    assert abs(is_kept.mean().item() - (1 - dropout)) < 4 * error
    for dim in range(4):  # no query, key, head or frame stands out
        others = [d for d in range(4) if d != dim]
        spread = (dropout * (1 - dropout) * SHAPE[dim] / is_kept.numel()) ** 0.5
        assert (is_kept.mean(others) - (1 - dropout)).abs().max() < 5 * spread


def test_seeds_are_independent():
    x, y = (kept(SHAPE, 0.5, torch.tensor(seed)).double() - 0.5 for seed in (0, 1))
    assert abs(4 * (x * y).mean()) < 4 / x.numel() ** 0.5
