"""Predictions of a split."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ivcl_fast import IVCLClassifier, IVCLConfig
from ivcl_fast.data.loader import Batch
from ivcl_fast.evaluation.evaluate import place_scores, predict, predict_views

CPU = torch.device("cpu")


def test_nothing_is_compiled_to_evaluate():
    """Its few batches, of shapes that training does not have, would each need graphs."""
    cfg = IVCLConfig.preset("tiny", image_size=16, num_frames=2, num_query_frames=1, depth=1)
    model, compiled = (IVCLClassifier(cfg, 3) for _ in range(2))
    compiled.load_state_dict(model.state_dict())
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    compiled.compile_blocks(backend=backend)
    rows = torch.randint(256, (5, 2, 4, 192), dtype=torch.uint8)
    batches = [
        Batch(part, torch.zeros(len(part)), torch.arange(len(part))) for part in rows.split(3)
    ]
    loader = SimpleNamespace(epoch=lambda _: batches)
    expected, *_ = predict(model, loader, CPU, amp=False)
    assert torch.equal(predict(compiled, loader, CPU, amp=False)[0], expected)
    assert not graphs
    compiled.train()(rows)
    trained = len(graphs)
    predict(compiled, loader, CPU, amp=False)
    compiled.train()(rows)
    assert len(graphs) == trained > 0


@pytest.mark.parametrize("clips", [1, 10])
def test_a_distance_without_variation_has_an_interval(clips):
    """So has the share of correct answers beside it."""
    logits, labels = torch.eye(36)[[0] * clips], torch.full((clips,), 7)  # one to the right, one up
    scores = place_scores(logits, labels, 6)
    low, value, high = scores["l1"].low, scores["l1"].value, scores["l1"].high
    other = scores["top1"].high  # what may be otherwise
    assert (low, value, high) == pytest.approx((2 - 2 * other, 2, 2 + (10 - 2) * other))


@pytest.mark.parametrize("grid", [4, 6, 8])
def test_chance_is_that_of_the_floor(grid):
    """A guess among all cells: that of the distance is the mean over all pairs of cells."""
    cells = grid * grid
    scores = place_scores(torch.eye(cells), torch.arange(cells), grid)
    assert (scores["top1"].chance, scores["top5"].chance) == (1 / cells, 5 / cells)
    y, x = torch.arange(cells) // grid, torch.arange(cells) % grid
    distances = (y[:, None] - y).abs() + (x[:, None] - x).abs()
    assert scores["l1"].chance == pytest.approx(distances.double().mean().item())


@pytest.mark.parametrize("multi_label", [False, True])
def test_answers_to_several_clips_are_averaged_where_all_could_be_read(multi_label):
    """As probabilities; each class has one of its own if several labels may apply."""

    def loader(answers: dict[int, list[float]]) -> Any:
        ids = torch.tensor(list(answers))
        batch = Batch(torch.tensor(list(answers.values())), 10 * ids, ids)
        return SimpleNamespace(epoch=lambda _: [batch])

    def probabilities(logits: Tensor) -> Tensor:
        return logits.sigmoid() if multi_label else logits.softmax(-1)

    views = [
        {0: [1.0, 2.0, -1.0], 1: [0.0, 3.0, 0.0], 2: [-1.0, 2.0, 2.0]},
        {2: [4.0, 0.0, 1.0], 0: [-2.0, 1.0, 0.0]},  # a clip of video 1 cannot be read
        {1: [1.0, 0.0, 2.0], 2: [3.0, 3.0, 0.0], 0: [0.0, -3.0, 1.0]},
    ]
    logits, labels, ids = predict_views(
        nn.Identity(), [loader(view) for view in views], CPU, amp=False, multi_label=multi_label
    )
    assert (ids.tolist(), labels.tolist()) == ([0, 2], [0, 20])
    for video, found in zip((0, 2), probabilities(logits), strict=True):
        expected = probabilities(torch.tensor([view[video] for view in views])).mean(0)
        torch.testing.assert_close(found, expected)
