"""The memory that ``info --plan`` predicts is what training takes."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

from ivcl_fast import IVCLConfig
from ivcl_fast.training import memory
from ivcl_fast.training.optim import Schedule

TINY = IVCLConfig.preset("tiny")


def peaks(
    *batches: int,
    cfg: IVCLConfig = TINY,
    classes: int | None = None,
    parts: int = 1,
    **options: Any,
) -> list[int]:
    schedule = Schedule(1, optimizer="muon", grad_accum_steps=parts)
    return memory.step_peaks(cfg, classes, batches, schedule, **options)


@pytest.mark.parametrize(("preset", "megabytes"), [("tiny", 17), ("base224", 1026)])
def test_a_clip_takes_what_autograd_saved_of_it(preset, megabytes):
    """Compared with measurements on a CPU in bfloat16, without casts and temporary tensors."""
    low, high = peaks(16, 32, cfg=IVCLConfig.preset(preset), classes=36)
    assert megabytes - 0.5 <= (high - low) / 16e6 < 1.15 * megabytes


def test_fake_tensors_take_as_much_as_real_ones(monkeypatch):
    fake = peaks(2, on_gpu=False)
    monkeypatch.setattr(memory, "FakeTensorMode", nullcontext)
    assert peaks(2, on_gpu=False) == pytest.approx(fake, rel=0.02)


def test_what_saves_memory():
    (plain,), (float32,) = peaks(64), peaks(64, bf16=False)
    (quarters,), (recomputed,) = peaks(64, parts=4), peaks(64, grad_checkpoint=True)
    assert quarters < plain / 2 and recomputed < plain / 2 and float32 > 1.4 * plain
    (kept,) = peaks(64, keep_gradients=True)
    gradients = 4 * 1.5e6
    assert kept - plain == pytest.approx(gradients, rel=0.2)


@pytest.mark.parametrize("parts", [1, 64])
def test_memory_is_linear_in_the_clips(parts):
    few, many, most = peaks(16 * parts, 256 * parts, 1000 * parts, parts=parts)
    assert few + (many - few) / 240 * 984 == pytest.approx(most, rel=0.02)
