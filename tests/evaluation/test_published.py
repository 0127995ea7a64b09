"""Published scores: which data set they stand beside, and that each says where it was read."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ivcl_fast.evaluation.metrics import Score
from ivcl_fast.evaluation.published import published
from ivcl_fast.report.run import published_table


def dataset(root, task):
    root.mkdir(parents=True, exist_ok=True)
    return SimpleNamespace(root=root, task=task)


def test_they_are_of_the_data_set_by_its_published_name(tmp_path):
    static, moving = (
        published(dataset(tmp_path / name, "localize"))
        for name in ("all_actions", "all_actions_cameramotion")
    )
    assert {r.model: r.scores["top1"] for r in static}["R3D + NL, 32 frames, LSTM"] == 0.455
    assert {r.model: r.scores["top1"] for r in moving}["LRR"] == 0.804
    assert published(dataset(tmp_path / "mine", "localize")) == []
    assert published(dataset(tmp_path / "all_actions", "actions_present")) == []
    (comp,) = (r for r in published(dataset(tmp_path / "ACRE_Comp", "acre")) if r.model == "NS-RW")
    assert comp.scores == pytest.approx({"query": 0.5069, "problem": 0.081})
    assert published(dataset(tmp_path / "anything", "compositional"))


def test_data_of_our_making_has_none(tmp_path):
    made = dataset(tmp_path / "all_actions", "localize")
    (made.root / "synthetic.json").write_text('{"spec": {}}')
    assert published(made) == [] and published_table(made, {}) is None


def test_the_report_shows_them_in_its_own_metrics(tmp_path):
    ours = {
        "top1": Score(0.7, 0.6, 0.8, 1 / 36),
        "l1": Score(1.0, 0.9, 1.1, 3.89, percent=False),
    }
    lines = published_table(dataset(tmp_path / "all_actions", "localize"), ours).markdown()
    assert lines[0] == "| published | top-1 | L1 (cells) | source |"
    assert "| Hopper | 73.2 % | 0.85 | Hopper's abstract, ICLR 2021 |" in lines
    assert "| Loci | 90.7 % |  | quoted in LRR |" in lines
