"""FLOPs of a training step: by hand, and of clips that share frames."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ivcl_fast import IVCLClassifier, IVCLConfig
from ivcl_fast.models import flops
from ivcl_fast.training import hardware

SIZES = dict(
    image_size=24, num_frames=3, num_query_frames=2, depth=2, temporal_depth=2, decoder_depth=2,
    embed_dim=24, decoder_dim=12, mlp_ratio=3.5,
)  # fmt: skip


def test_image_encoder_by_hand():
    """All tokens pass attention, and only the slots pass the rest of the last block."""
    cfg = IVCLConfig(**SIZES | {"depth": 1}, objective="classification")
    frames, patches, slots, width = 3, cfg.num_patches, cfg.num_slots, 24
    tokens = slots + patches
    attention = frames * (2 * tokens * width * 3 * width + 2 * 2 * tokens**2 * width)
    after = frames * slots * (2 * width * width + 2 * 2 * width * 84)
    head = 2 * frames * width * 5
    embedding = 2 * frames * patches * cfg.patch_dim * width  # pixels have no gradient
    expected = 2 * embedding + 3 * (attention + after + head)
    assert flops.supervised_training(cfg, 5) == expected


@pytest.mark.parametrize("objective", ["ivcl", "joint", "slot_attention"])
def test_clips_that_share_frames(objective):
    cfg = IVCLConfig(**SIZES, objective=objective)
    frame_index = torch.tensor([[[0, 1, 2], [0, 1, 3]]])  # four frames, two for each clip
    with torch.device("meta"):
        model = IVCLClassifier(cfg, 5)
        video = torch.zeros(1, 4, cfg.num_patches, cfg.patch_dim, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter:
        model(video, frame_index.to("meta")).sum().backward()
    assert 2 * flops.training(cfg, 5, frames=2) == counter.get_total_flops()


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
