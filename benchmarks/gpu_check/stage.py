"""The trainer's loop, ``Stage``, with Muon, clipping, compiled blocks and a CUDA graph.

Measures the gain of fused steps in the trainer itself, not in a benchmark's simplified step.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import measure, sizes, steps
from benchmarks.measure import DEVICE, free_memory
from benchmarks.results import Row, RowFile, Skip
from benchmarks.steps import Variant, graph_or_error, model_of, unsupported_reason
from ivcl_fast import IVCLConfig, reference
from ivcl_fast.data.loader import Batch
from ivcl_fast.models import flops
from ivcl_fast.training.hardware import Execution
from ivcl_fast.training.loop import Intervals, Stage
from ivcl_fast.training.metrics_log import MetricsLog
from ivcl_fast.training.optim import Schedule
from ivcl_fast.training.seeds import clip_seeds

EAGER_WAYS = steps.OURS_GRAPH, steps.OURS
COMPILED_WAYS = steps.OURS_COMPILED_GRAPH, steps.OURS_COMPILED


class UnsavedStage(Stage):
    """A stage that writes no checkpoint."""

    def _save(self, writer: Any, done: int) -> None:
        pass


class SyntheticLoader:
    """Repeats one batch of random numbers: no loader can be faster."""

    wait_seconds = 0.0

    def __init__(self, cfg: IVCLConfig, clips: int) -> None:
        shape = clips, cfg.num_frames, cfg.num_patches, cfg.patch_dim
        generator = torch.Generator(DEVICE).manual_seed(0)
        self.batch = Batch(
            torch.randint(256, shape, dtype=torch.uint8, device=DEVICE, generator=generator),
            torch.zeros(clips, dtype=torch.int64, device=DEVICE),
            torch.arange(clips, device=DEVICE),
        )

    def __len__(self) -> int:
        return 1 << 30

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        while True:
            yield self.batch


def run_stage(
    model: nn.Module, way: Variant, loader: Any, num_steps: int, clips: int, log_every: int = 20
) -> list[dict[str, Any]]:
    """Run steps of pretraining; return the stage's metrics."""
    with tempfile.TemporaryDirectory() as folder:
        log = MetricsLog(Path(folder), viewer="none")
        stage = UnsavedStage(
            name="pretrain", model=model, loader=loader,
            loss=lambda model, part, step: model(
                part.rows, seed=clip_seeds(0, step, part.clip_ids)
            ).loss,
            schedule=Schedule(num_steps * clips, 1e-3, batch_size=clips, optimizer="muon"),
            folder=Path(folder), metrics=log,
            execution=Execution(DEVICE, way.bf16, cuda_graph=way.graph),
            every=Intervals(log=log_every),
        )  # fmt: skip
        with graph_or_error() if way.graph else nullcontext():
            stage.run()
        measure.synchronize()
        return log.read()


def fresh_weights(cfg: IVCLConfig) -> dict[str, Tensor]:
    """Return the initial weights of every way."""
    torch.manual_seed(0)
    with DEVICE:  # random weights take longer on a CPU than training on a GPU
        return reference.IVCL(cfg).state_dict()


def build(cfg: IVCLConfig, way: Variant, weights: dict[str, Tensor]) -> nn.Module:
    """Return a way's model with these weights; raises :class:`Skip` if it cannot run here."""
    if reason := unsupported_reason(way):
        raise Skip(reason)
    model = model_of(way, cfg)
    model.load_state_dict(weights)
    return model


def settled(records: Sequence[dict[str, Any]], clips: int) -> Row:
    """Return the median speed of a stage, and the share of time spent waiting for data."""
    logged = [record for record in records if "clips_per_second" in record]
    logged = logged[2:] or logged[-1:]  # the first ones warm up and record the graph
    speed, wait = (
        statistics.median(record[key] for record in logged)
        for key in ("clips_per_second", "data_wait")
    )
    return {"seconds": clips / speed, "data_wait": wait}


def speeds(ways: Sequence[Variant], rows: RowFile) -> None:
    """Time the stage of ``base64`` in several ways and at several batch sizes."""
    cfg, num_steps = sizes.BATCHES["base64"].cfg, sizes.STAGE_STEPS
    weights = fresh_weights(cfg)
    for way in ways:
        for clips in sizes.STAGE_CLIPS:
            what = f"stage with Muon, {clips} clips"
            with rows.row(what, way.name, count=clips, unit="clips") as row:
                row["flops"] = clips * flops.training(cfg)
                model, loader = build(cfg, way, weights), SyntheticLoader(cfg, clips)
                measure.reset_peak()
                records = run_stage(model, way, loader, num_steps, clips, max(1, num_steps // 8))
                row |= settled(records, clips) | {"peak_bytes": measure.peak_bytes()}
                del model, loader
            free_memory()
