"""FLOPs counted from the sizes against those that PyTorch counts while a model runs."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ivcl_fast import IVCLClassifier, IVCLConfig, Supervised
from ivcl_fast.config import SupervisedObjective
from ivcl_fast.kernels import _ext, _triton
from ivcl_fast.models import flops
from ivcl_fast.models.ivcl import pretraining_class
from ivcl_fast.training import hardware

SIZES = dict(
    image_size=24, num_frames=3, num_query_frames=2, depth=2, temporal_depth=2, decoder_depth=2,
    embed_dim=24, decoder_dim=12, mlp_ratio=3.5,
)  # fmt: skip
PRETRAINING = [
    {}, {"decoder_slots": False}, {"context_tokens": "slots+patches"}, {"objective": "mae"},
    {"objective": "joint"}, {"objective": "slot_attention"},
]  # fmt: skip
CLASSIFIERS = [
    {}, {"readout": "mean"}, {"readout": "cls"}, {"objective": "joint"},
    {"objective": "joint", "readout": "cls"}, {"objective": "slot_attention"},
]  # fmt: skip
CLIPS = 2


@pytest.fixture
def plain(monkeypatch):
    """Ops in plain PyTorch: its counter does not see into kernels."""
    monkeypatch.setattr(_ext, "MISSING", "switched off")
    monkeypatch.setattr(_triton, "MISSING", "switched off")
    monkeypatch.setattr(_triton, "INTERPRET", False)


def counted(cfg, model, frames=None, frame_index=None) -> int:
    """FLOPs per clip of a forward and backward pass, as PyTorch counts them."""
    shape = CLIPS, frames or cfg.num_frames, cfg.num_patches, cfg.patch_dim
    video = torch.randint(256, shape, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter:
        out = model(video) if frame_index is None else model(video, frame_index)
        (out if isinstance(out, torch.Tensor) else out.loss).sum().backward()
    clips = CLIPS if frame_index is None else frame_index.shape[:2].numel()
    total = counter.get_total_flops()
    assert total % clips == 0
    return total // clips


@pytest.mark.parametrize("choices", PRETRAINING, ids=str)
def test_pretraining(choices, plain):
    cfg = IVCLConfig(**SIZES, **choices)
    assert counted(cfg, pretraining_class(cfg)(cfg)) == flops.training(cfg)


@pytest.mark.parametrize("choices", CLASSIFIERS, ids=str)
def test_classifier(choices, plain):
    cfg = IVCLConfig(**SIZES, **choices)
    assert counted(cfg, IVCLClassifier(cfg, 5)) == flops.training(cfg, 5)


@pytest.mark.parametrize("choices", CLASSIFIERS, ids=str)
def test_clips_that_share_frames(choices, plain):
    cfg = IVCLConfig(**SIZES, **choices)
    frame_index = torch.tensor([[[0, 1, 2], [0, 1, 3]]] * CLIPS)  # four frames, two for each clip
    expected = flops.training(cfg, 5, frames=2)
    assert counted(cfg, IVCLClassifier(cfg, 5), 4, frame_index) == expected


@pytest.mark.parametrize("objective", get_args(SupervisedObjective))
def test_supervised_pretraining(objective, plain):
    cfg = IVCLConfig(**SIZES, objective=objective)
    assert counted(cfg, Supervised(cfg, 5)) == flops.supervised_training(cfg, 5)


def test_peak_is_known_by_the_whole_name(monkeypatch):
    gpu = torch.device("cuda")
    for name, peak in (
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756.5e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),  # a seventh of the card
        ("NVIDIA GeForce RTX 4090 D", None),
    ):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device, name=name: name)
        assert hardware.peak_flops(gpu) == peak
    assert hardware.peak_flops(torch.device("cpu")) is None
