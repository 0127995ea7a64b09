"""A pretraining step, forward and backward: the reference, and the fast model."""

from __future__ import annotations

import pytest
import torch

from benchmarks.conftest import CLIPS, DEVICE, PRESET
from ivcl_fast import IVCL, IVCLConfig, reference


@pytest.mark.parametrize(
    ("kind", "bf16", "compiled"),
    [
        pytest.param(reference.IVCL, False, False, id="reference-float32"),
        pytest.param(reference.IVCL, True, False, id="reference-bf16"),
        pytest.param(IVCL, True, False, id="fast-bf16"),
        pytest.param(IVCL, True, True, id="fast-bf16-compiled"),
    ],
)
def test_pretraining_step(kind, bf16, compiled, timed, benchmark):
    benchmark.group = f"pretraining step, {PRESET}, {CLIPS} clips"
    torch.manual_seed(0)
    cfg = IVCLConfig.preset(PRESET)
    video = torch.randint(
        256, (CLIPS, cfg.num_frames, cfg.num_patches, cfg.patch_dim), dtype=torch.uint8
    ).to(DEVICE)
    seed = torch.arange(CLIPS, device=DEVICE)
    plain = reference.IVCL(cfg).to(DEVICE)
    model = kind(cfg).to(DEVICE)
    model.load_state_dict(plain.state_dict())
    with torch.no_grad():
        expected = plain(video, seed=seed).loss
    if compiled:
        model.compile_blocks()

    def step() -> torch.Tensor:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=bf16):
            loss = model(video, seed=seed).loss
        loss.backward()
        model.zero_grad()
        return loss

    torch.testing.assert_close(step().detach(), expected, rtol=2e-2, atol=0)
    timed(step)
