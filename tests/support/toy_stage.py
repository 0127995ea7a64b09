"""Short training stages, and a comparison of two runs.

Weights of the toy IV-CL model are float64, so that rounding is far smaller than the effect of any
mistake. AdamW divides by ``|g| + 1e-8``: it can amplify rounding up to 2^-53 / 1e-8 = 1e-8 of a
step of size ``lr``, which the tolerance on weights allows for every step.
"""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ivcl_fast import IVCL, IVCLConfig, SlotAutoencoder
from ivcl_fast.data.loader import Batch
from ivcl_fast.distributed import group as distributed
from ivcl_fast.models.ivcl import pretraining_class
from ivcl_fast.training import checkpoint
from ivcl_fast.training.hardware import Execution
from ivcl_fast.training.loop import Intervals, Stage, clip_seeds
from ivcl_fast.training.metrics_log import MetricsLog
from ivcl_fast.training.optim import Schedule

BATCH, STEPS, LR = 8, 12, 1e-2
ROUNDING = STEPS * LR * 2**-53 / 1e-8
PARALLELISM = {"replicas": {}, "shards": {"shard": True}}


class Killed(BaseException):
    """Stands for kill -9: no code of the run handles it."""


class ToyLoader:
    """Batches of random clips, a function of (epoch, batch) alone, and a rank's part of each."""

    wait_seconds = 0.0

    def __init__(self, batches: int, *shape: int) -> None:
        self.batches, self.shape = batches, shape

    def __len__(self) -> int:
        return self.batches

    def epoch(self, epoch: int, start_batch: int = 0):
        mine, size = slice(distributed.rank(), None, distributed.world_size()), self.shape[0]
        for number in range(start_batch, len(self)):
            draw = torch.Generator().manual_seed(1000 * epoch + number)
            rows = torch.randint(256, self.shape, dtype=torch.uint8, generator=draw)
            labels = torch.randint(3, (size,), generator=draw)
            yield Batch(rows[mine], labels[mine], (torch.arange(size) + number * size)[mine])


def make_toy_stage(
    folder: Path, model: nn.Module, loader: Any, loss: Any, schedule: dict, **options: Any
) -> Stage:
    """Make a stage on the CPU; ``options``: fields of its execution and intervals, and others."""
    folder.mkdir(exist_ok=True)
    how, every = (
        {field.name: options.pop(field.name) for field in fields(kind) if field.name in options}
        for kind in (Execution, Intervals)
    )
    return Stage(
        "toy", model, loader, loss, Schedule(**schedule), folder / "checkpoints",
        MetricsLog(folder), Execution(**{"device": torch.device("cpu")} | how), Intervals(**every),
        **options,
    )  # fmt: skip


def curve(folder: Path) -> list[tuple[int, float]]:
    """Steps and losses in the log of a stage."""
    return [(r["step"], r["loss"]) for r in MetricsLog(folder).read() if "loss" in r]


def reconstruction_loss(model, batch, step):
    if isinstance(getattr(model, "module", model), SlotAutoencoder):  # inside DDP
        return model(batch.rows).loss
    return model(batch.rows, seed=clip_seeds(0, step, batch.clip_ids)).loss


# --- IV-CL in float64 -----------------------------------------------------------------------------


def make_model(objective="ivcl") -> IVCL | SlotAutoencoder:
    torch.manual_seed(3)
    sizes = dict(image_size=16, embed_dim=8, num_heads=2, depth=1, temporal_depth=1)
    decoder = dict(decoder_dim=8, decoder_heads=2, decoder_depth=1)
    frames = dict(num_frames=2, num_query_frames=1)
    cfg = IVCLConfig(**sizes, **decoder, **frames, objective=objective)
    return pretraining_class(cfg)(cfg).double()


def make_stage(folder: Path, loss=reconstruction_loss, objective="ivcl", shard=False, **schedule):
    schedule = dict(clips=BATCH * STEPS, lr=LR, batch_size=BATCH, warmup_steps=2) | schedule
    loader = ToyLoader(6, BATCH, 2, 4, 192)
    options = dict(shard=shard, log=3, save=5)
    return make_toy_stage(folder, make_model(objective), loader, loss, schedule, **options)


def train(folder: Path, options: dict, fault=None) -> dict[str, torch.Tensor]:
    """Run the stage and return its weights on rank 0; ``fault(step)`` is called in every step."""

    def faulty_loss(model, batch, step):
        if fault is not None:
            fault(step)
        return reconstruction_loss(model, batch, step)

    stage = make_stage(folder, faulty_loss, **options)
    stage.run()
    return checkpoint.gather_to_rank0(stage.model.state_dict())


def assert_same_run(found: dict, folder: Path, expected: dict, expected_folder: Path) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=ROUNDING, msg=name)
    for (step, a), (expected_step, b) in zip(curve(folder), curve(expected_folder), strict=True):
        assert step == expected_step
        assert math.isclose(a, b, rel_tol=2**-23)  # a step's loss is kept in float32
