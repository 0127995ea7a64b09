"""Predictions of a split."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ivcl_fast import IVCLClassifier, IVCLConfig
from ivcl_fast.data.loader import Batch
from ivcl_fast.evaluation.evaluate import place_scores, predict

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
