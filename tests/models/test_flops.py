"""FLOPs counted from the sizes against those that PyTorch counts while a model runs."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import ivcl_fast
from ivcl_fast import IVCL, IVCLClassifier, IVCLConfig, reference, supervised
from ivcl_fast.kernels import _ext, _triton
from ivcl_fast.models import flops
from ivcl_fast.training import hardware
from ivcl_fast.training.loop import MetricsLog
from tests.training.test_loop import stage

SIZES = dict(
    image_size=24, num_frames=3, num_query_frames=2, depth=2, temporal_depth=2, decoder_depth=2,
    embed_dim=24, decoder_dim=12, mlp_ratio=3.5,
)  # fmt: skip
PRETRAINING = [
    {}, {"decoder_slots": False}, {"context_tokens": "slots+patches"}, {"objective": "mae"},
    {"objective": "joint"},
]  # fmt: skip
CLASSIFIERS = [{}, {"readout": "mean"}, {"readout": "cls"}, {"objective": "joint"}]
CLIPS = 2


@pytest.fixture
def plain(monkeypatch):
    """Ops in plain PyTorch: its counter does not see into kernels."""
    monkeypatch.setattr(_ext, "MISSING", "switched off")
    monkeypatch.setattr(_triton, "MISSING", "switched off")
    monkeypatch.setattr(_triton, "INTERPRET", False)


def counted(cfg, model, frames=None, frame_index=None) -> tuple[int, int]:
    """Forward, and forward with backward, of one clip."""
    shape = CLIPS, frames or cfg.num_frames, cfg.num_patches, cfg.patch_dim
    video = torch.randint(256, shape, dtype=torch.uint8)
    with FlopCounterMode(display=False) as once:
        out = model(video) if frame_index is None else model(video, frame_index)
    with FlopCounterMode(display=False) as back:
        (out.loss if isinstance(model, reference.IVCL) else out.sum()).backward()
    first, second = once.get_total_flops(), back.get_total_flops()
    clips = CLIPS if frame_index is None else frame_index.shape[:2].numel()
    assert first % clips == second % clips == 0
    return first // clips, (first + second) // clips


@pytest.mark.parametrize("module, every_token", [(reference, True), (None, False)])
@pytest.mark.parametrize("choices", PRETRAINING, ids=str)
def test_pretraining(choices, module, every_token, plain):
    cfg = IVCLConfig(**SIZES, **choices)
    model = (module.IVCL if module else IVCL)(cfg)
    expected = flops.forward(cfg, None, every_token), flops.training(cfg, None, every_token)
    assert counted(cfg, model) == expected


@pytest.mark.parametrize("module, every_token", [(reference, True), (None, False)])
@pytest.mark.parametrize("choices", CLASSIFIERS, ids=str)
def test_classifier(choices, module, every_token, plain):
    cfg = IVCLConfig(**SIZES, **choices)
    model = (module.IVCLClassifier if module else IVCLClassifier)(cfg, 5)
    expected = flops.forward(cfg, 5, every_token), flops.training(cfg, 5, every_token)
    assert counted(cfg, model) == expected


@pytest.mark.parametrize("module, every_token", [(reference, True), (None, False)])
@pytest.mark.parametrize("choices", CLASSIFIERS, ids=str)
def test_clips_that_share_frames(choices, module, every_token, plain):
    cfg = IVCLConfig(**SIZES, **choices)
    model = (module.IVCLClassifier if module else IVCLClassifier)(cfg, 5)
    frame_index = torch.tensor([[[0, 1, 2], [0, 1, 3]]] * CLIPS)  # four frames, two for each clip
    expected = [count(cfg, 5, every_token, 2) for count in (flops.forward, flops.training)]
    assert counted(cfg, model, 4, frame_index) == tuple(expected)


@pytest.mark.parametrize("objective", ["classification", "detection"])
@pytest.mark.parametrize("package, every_token", [(supervised, True), (ivcl_fast, False)])
def test_supervised_pretraining(objective, package, every_token, plain):
    cfg = IVCLConfig(**SIZES, objective=objective)
    counts = flops.supervised_forward, flops.supervised_training
    expected = tuple(count(cfg, 5, every_token) for count in counts)
    assert counted(cfg, package.Supervised(cfg, 5)) == expected


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


@pytest.mark.parametrize("peak", [None, 500.0])
def test_share_of_the_peak_is_logged_where_it_is_known(tmp_path, peak):
    stage(tmp_path / "run", peak_clips_per_second=peak).run()
    records = MetricsLog(tmp_path / "run").read()
    assert records and all(("mfu" in r) == (peak is not None) for r in records)
    for r in records if peak else ():
        assert r["mfu"] == pytest.approx(r["clips_per_second"] / peak)
