"""Predictions of a split, and baselines that need no training."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ivcl_fast.data.dataset import Clip
from ivcl_fast.data.loader import Batch
from ivcl_fast.evaluation import baselines
from ivcl_fast.evaluation.evaluate import Evaluation, place_scores, predict
from tests.evaluation.test_tracker import CORNER, COVERED, FAR, LAST, scene


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


@pytest.mark.parametrize("grid", [4, 6])
def test_guesses_are_about_the_cells_of_the_task(grid: int) -> None:
    """Two of the three cones in view stand where the snitch is; by sight, all is known."""
    known = scene([COVERED], snitch={0: FAR}, a={0: (0.5, 0.5), 3: FAR}, b={0: FAR}, c={0: CORNER})
    data = SimpleNamespace(scene=lambda name: known, grid=grid, num_classes=grid**2)
    label = torch.tensor([grid**2 - 1])
    clips = [Clip("video", "video", int(label))]
    evaluation = Evaluation({}, torch.zeros(1, grid**2), label, clips, torch.tensor([True]))
    results = baselines.guess_cells(data, evaluation, LAST + 1)
    for result, expected in zip(results, (2 / 3, 1.0), strict=True):
        assert [*result.correct.values()] == pytest.approx([expected])
        for group in ("all", "hidden"):
            score = result.scores[group]["top1"]
            assert (score.value, score.chance) == pytest.approx((expected, 1 / grid**2))
