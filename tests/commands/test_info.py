"""``python -m ivcl_fast.info``: the plan of a run."""

from __future__ import annotations

import pytest

from ivcl_fast import info


def test_the_plan_of_a_run(command):
    flags = "--device cuda --batch-size 64 --ranks 4 --stage pretrain --mask-ratio 0.5"
    status, told, _ = command(info.main, "--plan", *flags.split())
    assert status == 0
    assert "tiny, 16 clips per step on each GPU" in told and "pretrain, bf16" in told
    assert "finetune" not in told and "float32" not in told
    for row in ("fixed, GB", "MB per clip", "peak, GB", "clips that fit 24 GB"):
        assert row in told
    status, told, _ = command(info.main, "--plan", "--device", "cpu", "--stage", "finetune")
    assert status == 0 and "on this CPU" in told and "clips that fit" in told


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ("--plan --preset huge", "--preset: "), ("--plan --ranks 0", "--ranks: "),
        ("--plan --batch-size 10 --ranks 4", "--batch-size: "),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(command, flags, named):
    status, told, error = command(info.main, *flags.split())
    assert (status, told) == (2, "") and named in error and error.count("\n") == 1
