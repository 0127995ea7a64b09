"""The scaling model's arithmetic, on numbers that can be done by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from benchmarks.predictions.scaling import Cluster, Work, muon_flops, muon_seconds, step_seconds
from ivcl_fast import IVCL, IVCLConfig
from ivcl_fast.training.optim import Schedule, make_optimizers

CLUSTER = Cluster(
    flops=100.0, product_flops=50.0, launch=0.5, memory=280.0, per_machine=8, inside=20.0,
    outside=10.0, start=0.125, tree_hop=0.25, ring_hop=0.5, bucket=40.0, gather=2.0, disk=8.0,
    to_host=32.0, save_every=10,
)  # fmt: skip
WORK = Work(
    flops_per_clip=30.0,
    parameters=20.0,
    groups=4,
    muon=((3, 4, 2.0), (1, 6, 5.0)),
    clip_bytes=0.5,
    checkpoint_bytes=160.0,
)
COPY = 160 / 32 / 10
"""Seconds of a step's share of a checkpoint's copy."""


def written(step, checkpoint=160 / 8):
    """The step, and its wait for the checkpoint of 10 steps ago to be on disk."""
    return step + COPY + max(0, checkpoint - 10 * step) / 10


def optimizer(gpus, shard):
    """Products of one or three matrices and the larger one, and the exchange of bfloat16."""
    if gpus == 1:
        return (3 * 2 + 5) / 50 + 7 * 4 * 20 / 280
    machines, held = gpus // 8, 20 / gpus if shard else 20
    hops = 0.5 * (machines - 1) if shard else 0.25 * math.log2(machines)
    sent = 2 * (4 + 6) * (gpus - 1) * (2 / gpus if shard else 1)
    exchange = sent / (20 if gpus == 8 else 10) + (4 if shard else 2) * (0.125 + hops)
    return (2 + 5) / 50 + exchange + 7 * 4 * held / 280


@pytest.mark.parametrize(
    ("gpus", "clips", "shard", "compute", "exposed"),
    [
        (1, 1, False, 0.5, 0.0),  # no step is shorter than its launches
        (1, 10, False, 3.0, 0.0),
        (8, 10, False, 3.0, 140 / 20 + 2 * 0.125 - 2.0),  # 2 buckets; backward hides 2 of 3 seconds
        (32, 10, False, 3.0, 2 * 80 * 31 / 32 / 10 + 2 * (0.125 + 2 * 0.25) - 2.0),
        (8, 1000, False, 300.0, (140 / 20 + 2 * 0.125) / 2),  # nothing hides the last bucket
        (32, 10, True, 3.0, 3 * 80 * 31 / 32 / 10 + 12 * (0.125 + 3 * 0.5) - 3.0),
    ],
)
def test_a_step(gpus, clips, shard, compute, exposed):
    expected = written(compute + exposed + optimizer(gpus, shard))
    assert step_seconds(WORK, CLUSTER, gpus, clips, shard) == pytest.approx(expected)


def test_a_step_waits_for_its_frames():
    slow = replace(WORK, clip_bytes=2.0)
    assert step_seconds(slow, CLUSTER, 1, 10) == written(10 * 2 / 2)


def test_ranks_share_the_matrices_of_a_shape():
    """Of three equal matrices two ranks take two and one; the time is that of two."""
    for gpus, own in ((1, 3), (2, 2), (3, 1), (64, 1)):
        products = muon_seconds(WORK, replace(CLUSTER, inside=1e30), gpus, 1e30, 0.0, False)
        assert products == pytest.approx((own * 2 + 5) / 50)


def test_work_is_counted_on_the_model():
    cfg = IVCLConfig(depth=2, temporal_depth=1, decoder_depth=1)
    model, work = IVCL(cfg), Work.of(cfg)
    optimizers = make_optimizers(model, Schedule(1, optimizer="muon"))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for one in optimizers:
        one.step()
    slots = [t for o in optimizers for state in o.state.values() for t in state.values()]
    saved = [*model.state_dict().values(), *(t for t in slots if t.ndim)]
    assert work.clip_bytes == 16 * 64 * 192
    assert work.checkpoint_bytes == 4 * sum(tensor.numel() for tensor in saved)
    # Per iteration the Gram matrix 2*2*2*3, its square 2*2*2*2, times x 2*2*2*3.
    assert muon_flops(2, 3) == muon_flops(3, 2) == 5 * (24 + 16 + 24)
