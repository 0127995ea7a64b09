"""Predictions of a split."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ivcl_fast.data.loader import Batch
from ivcl_fast.evaluation.evaluate import place_scores, predict


@pytest.mark.parametrize("grid", [4, 6, 8])
def test_chance_is_that_of_the_floor(grid):
    """A guess among all cells: that of the distance is the mean over all pairs of cells."""
    cells = grid * grid
    scores = place_scores(torch.eye(cells), torch.arange(cells), grid)
    assert (scores["top1"].chance, scores["top5"].chance) == (1 / cells, 5 / cells)
    y, x = torch.arange(cells) // grid, torch.arange(cells) % grid
    distances = (y[:, None] - y).abs() + (x[:, None] - x).abs()
    assert scores["l1"].chance == pytest.approx(distances.double().mean().item())


def test_logits_of_several_clips_are_averaged_where_all_could_be_read() -> None:

    def loader(answers: dict[int, list[float]]) -> Any:
        ids = torch.tensor(list(answers))
        batch = Batch(torch.tensor(list(answers.values())), 10 * ids, ids)
        return SimpleNamespace(epoch=lambda _: [batch])

    views = [
        {0: [1.0, 2.0], 1: [0.0, 3.0], 2: [-1.0, 2.0]},
        {0: [-2.0, 1.0], 2: [4.0, 0.0]},  # a clip of video 1 cannot be read
        {0: [4.0, -3.0], 1: [1.0, 0.0], 2: [3.0, 1.0]},
    ]
    loaders = [loader(view) for view in views]
    logits, labels, ids = predict(nn.Identity(), loaders, torch.device("cpu"), amp=False)
    assert (ids.tolist(), labels.tolist()) == ([0, 2], [0, 20])
    assert logits.tolist() == [[1.0, 0.0], [2.0, 1.0]]
