"""What a finished run answers for one clip, and with which of its models."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ivcl_fast.analysis.finished_runs import FinishedRun
from ivcl_fast.training.classes import Classes
from ivcl_fast.training.settings import TrainConfig

LOGITS = torch.tensor([[-1.0, 2.0, 1.0, 0.5]])


class Model:
    """Gives the same answer to every video; keeps what it was given."""

    def __init__(self, num_frames: int) -> None:
        self.cfg = SimpleNamespace(num_frames=num_frames)
        self.given: list[Tensor] = []

    def __call__(self, video: Tensor) -> Tensor:
        self.given.append(video)
        return LOGITS


def run_with(
    folder: Path, target: str = "class", chosen: str | None = None, **settings: Any
) -> FinishedRun:
    config = TrainConfig().replace(device="cpu", amp="off", out=folder, name="run", **settings)
    run = FinishedRun(config, chosen=chosen)
    run.classes = Classes(target, ["a", "b", "c", "d"])
    return run


@pytest.mark.parametrize("takes", [1, 3])
def test_a_model_of_fewer_frames_is_given_the_last_ones(takes: int, tmp_path: Path) -> None:
    """So is the model that sees the last frame alone."""
    model: Any = Model(takes)
    frames = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 3, 2, 2)
    run_with(tmp_path).answer(model, frames, 1)
    assert model.given[0][0, :, 0, 0, 0].tolist() == [0, 1, 2, 3, 4][-takes:]


@pytest.mark.parametrize("target", ["class", "classes"])
def test_probabilities_compete_unless_several_labels_may_apply(target: str, tmp_path: Path) -> None:
    model: Any = Model(1)
    frames = torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    answers = run_with(tmp_path, target).answer(model, frames, 3)
    assert list(answers) == ["b", "c", "d"]
    expected = LOGITS[0].sigmoid() if target == "classes" else LOGITS[0].softmax(0)
    assert list(answers.values()) == pytest.approx(expected[1:].tolist())
