"""Predictions of a split."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ivcl_fast.data.loader import Batch
from ivcl_fast.evaluation.evaluate import place_scores, predict_views

CPU = torch.device("cpu")


@pytest.mark.parametrize("grid", [4, 6, 8])
def test_chance_is_that_of_the_floor(grid):
    """A guess among all cells: that of the distance is the mean over all pairs of cells."""
    cells = grid * grid
    scores = place_scores(torch.eye(cells), torch.arange(cells), grid)
    assert (scores["top1"].chance, scores["top5"].chance) == (1 / cells, 5 / cells)
    y, x = torch.arange(cells) // grid, torch.arange(cells) % grid
    distances = (y[:, None] - y).abs() + (x[:, None] - x).abs()
    assert scores["l1"].chance == pytest.approx(distances.double().mean().item())


@pytest.mark.parametrize("target", ["class", "classes", "numbers"])
def test_answers_to_several_clips_are_averaged_where_all_could_be_read(target: str) -> None:

    def loader(answers: dict[int, list[float]]) -> Any:
        ids = torch.tensor(list(answers))
        batch = Batch(torch.tensor(list(answers.values())), 10 * ids, ids)
        return SimpleNamespace(epoch=lambda _: [batch])

    def probabilities(logits: Tensor) -> Tensor:
        return {"class": logits.softmax(-1), "classes": logits.sigmoid()}.get(target, logits)

    views = [
        {0: [1.0, 2.0, -1.0], 1: [0.0, 3.0, 0.0], 2: [-1.0, 2.0, 2.0]},
        {2: [4.0, 0.0, 1.0], 0: [-2.0, 1.0, 0.0]},  # a clip of video 1 cannot be read
        {1: [1.0, 0.0, 2.0], 2: [3.0, 3.0, 0.0], 0: [0.0, -3.0, 1.0]},
    ]
    logits, labels, ids = predict_views(
        nn.Identity(), [loader(view) for view in views], CPU, amp=False, target=target
    )
    assert (ids.tolist(), labels.tolist()) == ([0, 2], [0, 20])
    for video, found in zip((0, 2), probabilities(logits), strict=True):
        expected = probabilities(torch.tensor([view[video] for view in views])).mean(0)
        torch.testing.assert_close(found, expected)
