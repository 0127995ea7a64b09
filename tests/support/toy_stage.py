"""A short training stage for tests of many ranks, and what makes two of its runs the same one.

Weights are float64 here, so that rounding stands far below any mistake. AdamW divides by
``|g| + 1e-8``: it can blow rounding up to 2^-53 / 1e-8 = 1e-8 of a step of size ``lr``, which the
tolerance on weights allows for every step.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch

from ivcl_fast import IVCL, IVCLConfig
from ivcl_fast.data.loader import Batch
from ivcl_fast.distributed import group as distributed
from ivcl_fast.training import checkpoint
from ivcl_fast.training.loop import Stage
from ivcl_fast.training.metrics_log import MetricsLog
from ivcl_fast.training.optim import Schedule
from ivcl_fast.training.seeds import clip_seeds

BATCH, STEPS, LR = 8, 12, 1e-2
ROUNDING = STEPS * LR * 2**-53 / 1e-8


class SharedLoader:
    """Six batches an epoch, a function of (epoch, batch) alone, and a rank's part of each."""

    wait_seconds = 0.0

    def __len__(self):
        return 6

    def epoch(self, epoch, start_batch=0):
        mine = slice(distributed.rank(), None, distributed.world_size())
        for number in range(start_batch, len(self)):
            draw = torch.Generator().manual_seed(1000 * epoch + number)
            rows = torch.randint(256, (BATCH, 2, 4, 192), dtype=torch.uint8, generator=draw)
            ids = torch.arange(BATCH) + number * BATCH
            yield Batch(rows[mine], torch.zeros(BATCH)[mine], ids[mine])


def make_model(objective="ivcl") -> IVCL:
    torch.manual_seed(3)
    sizes = dict(image_size=16, embed_dim=8, num_heads=2, depth=1, temporal_depth=1)
    decoder = dict(decoder_dim=8, decoder_heads=2, decoder_depth=1)
    frames = dict(num_frames=2, num_query_frames=1)
    return IVCL(IVCLConfig(**sizes, **decoder, **frames, objective=objective)).double()


def loss(model, batch, step):
    return model(batch.rows, seed=clip_seeds(0, step, batch.clip_ids)).loss


def make_stage(
    folder: Path, loss=loss, *, objective="ivcl", shard=False, grad_accum_steps=1, optimizer="adamw"
):
    folder.mkdir(exist_ok=True)
    schedule = Schedule(
        BATCH * STEPS,
        LR,
        batch_size=BATCH,
        warmup_steps=2,
        grad_accum_steps=grad_accum_steps,
        optimizer=optimizer,
    )
    return Stage(
        "toy", make_model(objective), SharedLoader(), loss, schedule, folder / "checkpoints",
        MetricsLog(folder), torch.device("cpu"), amp=False, shard=shard, log_every=3, save_every=5,
    )  # fmt: skip


def train(folder: Path, options: dict, fault=None) -> dict[str, torch.Tensor]:
    """Run the stage and return its weights on rank 0; ``fault(step)`` is called in every step."""

    def faulty_loss(model, batch, step):
        if fault is not None:
            fault(step)
        return loss(model, batch, step)

    stage = make_stage(folder, faulty_loss, **options)
    stage.run()
    return checkpoint.gather_to_rank0(stage.model.state_dict())


def curve(folder: Path) -> list[tuple[int, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [(r["step"], r["loss"]) for r in map(json.loads, lines) if "loss" in r]


def assert_same_run(found: dict, folder: Path, expected: dict, expected_folder: Path) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=ROUNDING, msg=name)
    for (step, a), (expected_step, b) in zip(curve(folder), curve(expected_folder), strict=True):
        assert step == expected_step
        assert math.isclose(a, b, rel_tol=2**-23)  # a step's loss is kept in float32


PARALLELISM = {"replicas": {}, "shards": {"shard": True}}
