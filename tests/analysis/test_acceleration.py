"""What ``info --model`` takes as a model's input, and how it measures the gain."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ivcl_fast.analysis import acceleration

VIDEO = SimpleNamespace(image_size=16, num_frames=4, num_channels=1)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"pretrained_cfg": {"input_size": (3, 8, 16)}}, [3, 8, 16]),
        ({"config": VIDEO}, [4, 1, 16, 16]),
        ({"config": SimpleNamespace(vision_config=VIDEO)}, [4, 1, 16, 16]),
        ({"config": SimpleNamespace(crop_size=(8, 16), frames_per_clip=2)}, [2, 3, 8, 16]),
        ({}, [3, 224, 224]),
    ],
    ids=["timm", "VideoMAE", "with a text model", "V-JEPA 2", "unknown"],
)
def test_the_input_is_of_the_shape_that_the_model_takes(told, expected):
    """Video models of Hugging Face take the frames before the channels."""
    assert acceleration.input_shape(SimpleNamespace(**told)) == expected


def test_a_model_that_takes_half_the_time_is_twice_as_fast(monkeypatch):
    own, ours = nn.Linear(2, 2), nn.Linear(2, 2)
    took = {own: 0.004, ours: 0.002}
    monkeypatch.setattr(acceleration, "seconds", lambda run, model, x: took[model])
    training, inference = acceleration.gains(own, ours, torch.ones(1, 2))
    assert "training 2.00x (4 to 2 ms" in training
    assert "inference 2.00x (4 to 2 ms" in inference
