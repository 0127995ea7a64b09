"""The gain that ``info --model`` prints."""

from __future__ import annotations

import torch
from torch import nn

from ivcl_fast.analysis import acceleration


def test_gain_is_the_ratio_of_times(monkeypatch):
    own, ours = nn.Linear(2, 2), nn.Linear(2, 2)
    took = {own: 0.004, ours: 0.002}
    monkeypatch.setattr(acceleration, "seconds", lambda run, model, x: took[model])
    line = acceleration.gain("training", acceleration.training_step, own, ours, torch.ones(1, 2))
    assert "training 2.00x (4 to 2 ms" in line
