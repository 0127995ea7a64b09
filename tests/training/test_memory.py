"""The memory that ``info --plan`` predicts is what training takes."""

from __future__ import annotations

import pytest

from ivcl_fast import IVCLConfig
from ivcl_fast.training.memory import fake_step
from ivcl_fast.training.optim import Schedule

TINY = IVCLConfig.preset("tiny")


@pytest.mark.parametrize(("preset", "megabytes"), [("tiny", 18), ("base224", 1168)])
def test_activations_are_those_measured(preset, megabytes):
    """What autograd was seen to save on a CPU in bfloat16, per clip of two, the casts included.

    For ``base224`` that was 1,161 MB: 200 tokens are too many for the GPU's own attention, and
    FlashAttention keeps its output and 1.8 MB of sums besides.
    """
    with fake_step(IVCLConfig.preset(preset), 36) as step:
        memory = step.memory(2)
    saved = (memory.casts + memory.activations) / 2e6
    assert saved == pytest.approx(megabytes, abs=0.5, rel=0.005)


def test_what_saves_memory():
    with fake_step(TINY) as step:
        plain, kept = step.memory(64), step.memory(64, keep_gradients=True)
        float32 = step.memory(64, bf16=False)
    with fake_step(TINY, schedule=Schedule(1, grad_accum_steps=4)) as step:
        quarters = step.memory(64)
    with fake_step(TINY, grad_checkpoint=True) as step:
        recomputed = step.memory(64)
    assert quarters.activations == pytest.approx(plain.activations / 4, rel=0.05)
    assert quarters.peak < plain.peak / 2
    assert recomputed.activations < plain.activations / 2 and recomputed.peak < plain.peak / 2
    assert float32.activations > 1.5 * plain.activations and float32.casts == 0
    assert plain.gradients == plain.weights
    # Replicas hold their gradients all the time; otherwise there are none yet when it peaks.
    assert kept.peak - plain.peak == pytest.approx(plain.gradients, rel=0.2)
    parts = plain.weights + plain.optimizer + plain.casts + plain.activations
    assert parts <= plain.peak < 1.15 * parts


@pytest.mark.parametrize("parts", [1, 64])
def test_the_most_clips_that_fit(parts):
    limit = 8 * 10**9
    with fake_step(TINY, schedule=Schedule(1, grad_accum_steps=parts)) as step:
        clips, none = step.most_clips([limit, 2 * step.weights])
        assert clips % parts == none == 0
        assert 0.95 * limit < step.memory(clips).peak < 1.01 * limit
