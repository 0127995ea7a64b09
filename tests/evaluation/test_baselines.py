"""Baselines that need no training, on a scene written by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ivcl_fast.data.dataset import Clip
from ivcl_fast.evaluation import baselines
from ivcl_fast.evaluation.evaluate import Evaluation
from tests.evaluation.test_tracker import CORNER, COVERED, FAR, LAST, scene


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
