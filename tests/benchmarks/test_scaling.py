"""The scaling model's arithmetic, on numbers that can be done by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from benchmarks import scaling
from benchmarks.scaling import Cluster, Work, muon_flops, step
from ivcl_fast import IVCL, IVCLConfig
from ivcl_fast.training.loop import Schedule, make_optimizers

CLUSTER = Cluster(
    flops=100.0, product_flops=50.0, launch=0.5, memory=280.0, per_machine=8, inside=20.0,
    outside=10.0, start=0.125, tree_hop=0.25, ring_hop=0.5, bucket=40.0, gather=2.0, disk=8.0,
    save_every=10,
)  # fmt: skip
WORK = Work(
    flops_per_clip=30.0, parameters=20.0, groups=4, product_flops=5.0, clip_bytes=2.0,
    checkpoint_bytes=160.0,
)  # fmt: skip


def test_one_gpu_talks_to_nobody():
    alone = step(WORK, CLUSTER, 1, 10)
    assert (alone.compute, alone.exposed, alone.sent) == (3.0, 0.0, 0.0)
    assert alone.optimizer == pytest.approx(5 / 50 + 7 * 4 * 20 / 280)
    assert (alone.feed, alone.checkpoint) == (10.0, 2.0)
    assert alone.seconds == 10.0 + 2.0  # it waits for data
    assert alone.clips_per_second == 10 / 12


def test_no_step_is_shorter_than_its_launches():
    assert step(WORK, CLUSTER, 1, 1).compute == 0.5


def test_replicas_in_one_machine_and_in_several():
    inside = step(WORK, CLUSTER, 8, 10)
    assert inside.sent == 2 * 80 * 7 / 8  # of 80 bytes of gradients
    talk = 140 / 20 + 2 * 0.125  # two buckets
    assert inside.exposed == talk - 2.0  # backward hides 2 of the 3 seconds
    outside = step(WORK, CLUSTER, 32, 10)
    talk = 2 * 80 * 31 / 32 / 10 + 2 * (0.125 + 2 * 0.25)  # four machines: two levels
    assert outside.exposed == pytest.approx(talk - 2.0)
    assert outside.clips == 320


def test_the_last_bucket_has_nothing_to_hide_behind():
    assert step(WORK, CLUSTER, 8, 1000).exposed == (140 / 20 + 2 * 0.125) / 2


def test_shards_send_more_and_hold_less():
    shards, replicas = (step(WORK, CLUSTER, 32, 10, shard) for shard in (True, False))
    assert shards.sent == 1.5 * replicas.sent == 3 * 80 * 31 / 32
    talk = shards.sent / 10 + 12 * (0.125 + 3 * 0.5)
    assert shards.exposed == pytest.approx(talk - 3.0)  # forward hides as well
    assert shards.optimizer == pytest.approx(5 / 50 + 7 * 4 * 20 / 32 / 280)


def test_muon_flops_of_either_shape():
    # Per iteration gram 2*2*2*3, its square 2*2*2*2, times x 2*2*2*3.
    assert muon_flops(2, 3) == muon_flops(3, 2) == 5 * (24 + 16 + 24)


def test_work_is_counted_on_the_model():
    cfg = IVCLConfig(depth=2, temporal_depth=1, decoder_depth=1)
    model, work = IVCL(cfg), Work.of(cfg)
    assert work.parameters == sum(p.numel() for p in model.parameters())
    optimizers = make_optimizers(model, Schedule(1, optimizer="muon"))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
    slots = [t for o in optimizers for state in o.state.values() for t in state.values()]
    saved = [*model.state_dict().values(), *(t for t in slots if t.ndim)]
    assert work.checkpoint_bytes == 4 * sum(tensor.numel() for tensor in saved)
    assert work.clip_bytes == 16 * 64 * 192
    assert work.groups == 5


def test_tables_name_the_origin_of_every_input(capsys):
    scaling.main(["--preset", "tiny", "--flops", "1e14", "--batch", "64"])
    said = capsys.readouterr().out
    for field in dataclasses.fields(Cluster):
        assert f"| {field.name}: {field.metadata['unit']} |" in said
    assert "| flops: FLOP/s per GPU in training | 1e+14 | given |" in said
    weak, strong, sharded = said.split("| GPUs |")[1:]
    assert weak.count("\n| ") == sharded.count("\n| ") == len(scaling.GPUS)
    assert "| 1,024 | 90,112 |" in weak and "| 1,024 |" not in strong  # 64 clips for 64 at most
    assert weak.splitlines()[2].split("|")[10].strip() == "100%"
