"""The input and the gain of ``info --model``."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ivcl_fast.analysis import acceleration

VIDEO = SimpleNamespace(image_size=16, num_frames=4, num_channels=1)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"pretrained_cfg": {"input_size": (3, 8, 16)}}, [3, 8, 16]),
        ({"config": VIDEO}, [4, 1, 16, 16]),
        ({"config": SimpleNamespace(vision_config=VIDEO)}, [4, 1, 16, 16]),
        ({"config": SimpleNamespace(crop_size=(8, 16), frames_per_clip=2)}, [2, 3, 8, 16]),
        ({}, [3, 224, 224]),
    ],
    ids=["timm", "VideoMAE", "with a text model", "V-JEPA 2", "unknown"],
)
def test_input_shape(model, expected):
    assert acceleration.input_shape(SimpleNamespace(**model)) == expected


def test_gain_is_the_ratio_of_times(monkeypatch):
    own, ours = nn.Linear(2, 2), nn.Linear(2, 2)
    took = {own: 0.004, ours: 0.002}
    monkeypatch.setattr(acceleration, "seconds", lambda run, model, x: took[model])
    line = acceleration.gain("training", acceleration.training_step, own, ours, torch.ones(1, 2))
    assert "training 2.00x (4 to 2 ms" in line
