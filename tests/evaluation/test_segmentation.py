"""ARI and mean best overlap: hand-computed cases, and agreement with scikit-learn and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import adjusted_rand_score, jaccard_score
from torch import Tensor

from ivcl_fast.evaluation.segmentation import adjusted_rand_index, mean_best_overlap

PICTURES, PIXELS, TOLERANCE = 20, 60, dict(rtol=0, atol=1e-6)


def drawn(count: int, least: int = 0) -> Tensor:
    """Random segments ``[M, P]`` from ``least`` on, ``count`` of them."""
    generator = torch.Generator().manual_seed(count)
    return torch.randint(least, least + count, (PICTURES, PIXELS), generator=generator)


def test_ari_is_scikit_learns() -> None:
    found, true = drawn(5), drawn(4, least=-1)
    expected = [adjusted_rand_score(t[t >= 0], f[t >= 0]) for f, t in zip(found, true, strict=True)]
    everywhere = [adjusted_rand_score(t, f) for f, t in zip(found, true, strict=True)]
    for ours, theirs in (
        (adjusted_rand_index(found, true), expected),
        (adjusted_rand_index(found, true + 1), everywhere),
    ):
        torch.testing.assert_close(ours, torch.tensor(theirs).double(), **TOLERANCE)
    whole = adjusted_rand_index(found.flatten()[None], true.flatten()[None] + 1).item()
    assert whole == pytest.approx(adjusted_rand_score(true.flatten(), found.flatten()), abs=1e-6)


def test_segments_that_swap_objects_are_right_in_frames_and_wrong_in_the_video() -> None:
    true = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1]])
    found = torch.tensor([[3, 3, 5, 5], [5, 5, 3, 3]])
    assert adjusted_rand_index(found, true).tolist() == [1, 1]
    # 4 of 28 pairs are together in both, 12 in each: (4 - 36/7) / (12 - 36/7).
    whole = adjusted_rand_index(found.view(1, -1), true.view(1, -1))
    torch.testing.assert_close(whole, torch.tensor([-1 / 6]).double())
    assert mean_best_overlap(found, true).tolist() == [1, 1]
    assert mean_best_overlap(found.view(1, -1), true.view(1, -1)).tolist() == [pytest.approx(1 / 3)]


@pytest.mark.parametrize("true", [[-1, -1, -1, -1], [-1, 2, 2, 2], [-1, -1, -1, 0]])
def test_fewer_than_two_objects_have_no_ari(true: list[int]) -> None:
    assert adjusted_rand_index(torch.tensor([[0, 1, 1, 0]]), torch.tensor([true])).isnan().all()


def test_best_overlap_is_the_best_jaccard_score() -> None:
    found, true = drawn(5), drawn(4, least=-1)
    expected = [
        np.mean([max(jaccard_score(t == o, f == s) for s in range(5)) for o in range(3)])
        for f, t in zip(found.numpy(), true.numpy(), strict=True)
    ]
    ours = mean_best_overlap(found, true)
    torch.testing.assert_close(ours, torch.tensor(expected).double(), **TOLERANCE)
    assert mean_best_overlap(found, torch.full_like(true, -1)).isnan().all()
