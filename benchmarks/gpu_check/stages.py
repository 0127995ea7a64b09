"""The trainer's own loop, ``Stage``, with Muon, clipping, compiled blocks and a CUDA graph.

What a run gains from fused steps is measured here, not on a step that a benchmark has assembled.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import steps, timing
from benchmarks.benchmark import ParityError, free_memory
from benchmarks.results import Row, RowFile, Skip
from benchmarks.steps import Variant, model_of, recorded
from benchmarks.timing import DEVICE
from ivcl_fast import IVCLConfig, reference
from ivcl_fast.data.loader import Batch
from ivcl_fast.models import flops
from ivcl_fast.training import step_graph
from ivcl_fast.training.hardware import Execution, compile_unsupported_reason
from ivcl_fast.training.loop import Intervals, Stage
from ivcl_fast.training.metrics_log import MetricsLog
from ivcl_fast.training.optim import Schedule
from ivcl_fast.training.seeds import clip_seeds

PARITY_STEPS, RESUME_STEPS = 5, 12
"""Real steps, with a learning rate. A graph is recorded after three eager ones."""
LR = 1e-3
SLACK = 2.0
"""How many times as far from the reference in float32 as the reference in bfloat16 weights may be
(CONTRIBUTING.md has the same rule for ops)."""
FLOAT32_TOLERANCE = 0.02
"""Largest distance in float32, relative to what the steps changed: Muon iterates in bfloat16."""


class Finished(Exception):
    """Ends a stage before it writes a checkpoint."""


class Limited:
    """A loader that raises :class:`Finished` after a number of batches."""

    def __init__(self, loader: Any, batches: int) -> None:
        self.loader, self.batches = loader, batches

    @property
    def wait_seconds(self) -> float:
        return self.loader.wait_seconds

    def __len__(self) -> int:
        return self.batches

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        with closing(self.loader.epoch(epoch, start_batch)) as found:
            for _ in range(start_batch, self.batches):
                yield next(found)
        raise Finished


class SyntheticLoader:
    """One batch of random numbers, again and again: no loader can be faster."""

    wait_seconds = 0.0

    def __init__(self, cfg: IVCLConfig, clips: int) -> None:
        shape = clips, cfg.num_frames, cfg.num_patches, cfg.patch_dim
        generator = torch.Generator(DEVICE).manual_seed(0)
        self.batch = Batch(
            torch.randint(256, shape, dtype=torch.uint8, device=DEVICE, generator=generator),
            torch.zeros(clips, dtype=torch.int64, device=DEVICE),
            torch.arange(clips, device=DEVICE),
        )

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        while True:
            yield self.batch


WAYS = steps.OURS_GRAPH, steps.OURS, steps.OURS_COMPILED_GRAPH, steps.OURS_COMPILED
PARITY_WAYS = (
    Variant("reference, bf16"), *WAYS, Variant("ours, float32", ours=True, bf16=False),
    Variant("ours, float32, CUDA graph", ours=True, bf16=False, graph=True),
)  # fmt: skip


def unsupported_reason(way: Variant) -> str | None:
    """Return why a way to run a stage cannot run here, or None if it can."""
    if way.graph and (reason := step_graph.unsupported_reason(DEVICE)):
        return f"no CUDA graph: {reason}"
    if way.compiled and (reason := compile_unsupported_reason(DEVICE)):
        return f"not compiled: {reason}"
    return None


def run_stage(
    model: nn.Module,
    way: Variant,
    loader: Any,
    num_steps: int,
    clips: int,
    *,
    total: int = 0,
    folder: Path | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Run steps of pretraining, of ``total`` in the schedule; returns what the stage logs.

    With a ``folder`` there are checkpoints, every ``save`` steps, and it continues from them.
    """
    limited: Any = Limited(loader, num_steps)
    total = total or num_steps + 1
    with tempfile.TemporaryDirectory() as temporary:
        log = MetricsLog(Path(temporary), viewer="none")
        stage = Stage(
            name="pretrain", model=model, loader=limited,
            loss=lambda model, part, step: model(
                part.rows, seed=clip_seeds(0, step, part.clip_ids)
            ).loss,
            schedule=Schedule(total * clips, LR, batch_size=clips, optimizer="muon"),
            folder=folder or Path(temporary), metrics=log,
            execution=Execution(DEVICE, way.bf16, cuda_graph=way.graph),
            every=Intervals(**{"save": total + 1} | options),
        )  # fmt: skip
        with recorded() if way.graph else nullcontext(), suppress(Finished):
            stage.run()
        timing.synchronize()
        return log.read()


def speed(loader: Any, cfg: IVCLConfig, clips: int, num_steps: int, way: Variant) -> Row:
    """Train on batches of a loader; returns the median speed, and how long steps wait for data."""
    timing.reset_peak()
    kept = run_stage(
        build(cfg, way, fresh_weights(cfg)), way, loader, num_steps, clips,
        log=max(1, num_steps // 8),
    )  # fmt: skip
    settled = kept[2:] or kept  # the first two warm up and record the graph
    rates = {key: [record[key] for record in settled] for key in ("clips_per_second", "data_wait")}
    return {
        "seconds": clips / statistics.median(rates["clips_per_second"]),
        "data_wait": statistics.median(rates["data_wait"]),
        "peak_bytes": timing.peak_bytes(),
    }


def fresh_weights(cfg: IVCLConfig) -> dict[str, Tensor]:
    """Return the weights that every way starts from."""
    torch.manual_seed(0)
    with DEVICE:  # drawing them on a CPU takes longer than training with them on a GPU
        return reference.IVCL(cfg).state_dict()


def build(cfg: IVCLConfig, way: Variant, weights: dict[str, Tensor]) -> nn.Module:
    model = model_of(way, cfg)
    model.load_state_dict(weights)
    return model


def stage_speeds(rows: RowFile, cfg: IVCLConfig, batches: Sequence[int], num_steps: int) -> None:
    """Time the stage in every way at several batch sizes; what has to be compiled comes last."""
    for way in WAYS:
        for clips in batches:
            what = f"stage with Muon, {clips} clips"
            with rows.row(what, way.name, count=clips, unit="clips") as row:
                require(way)
                row["flops"] = clips * flops.training(cfg)
                row |= speed(SyntheticLoader(cfg, clips), cfg, clips, num_steps, way)
            free_memory()


def stage_parity(rows: RowFile, cfg: IVCLConfig, clips: int) -> None:
    """Compare the weights after real steps with those of the reference in float32."""
    start = fresh_weights(cfg)
    loader = SyntheticLoader(cfg, clips)

    def after(way: Variant) -> dict[str, Tensor]:
        model = build(cfg, way, start)
        run_stage(model, way, loader, PARITY_STEPS, clips)
        return {name: value.detach().clone() for name, value in model.state_dict().items()}

    expected = after(steps.FLOAT32)
    allowed = FLOAT32_TOLERANCE
    for way in PARITY_WAYS:
        what = f"weights after {PARITY_STEPS} steps of the stage, {clips} clips"
        with rows.row(what, way.name) as row:
            require(way)
            found = distance(after(way), expected, start)
            row["difference"] = found
            if not way.ours:
                allowed = SLACK * found
            bound = allowed if way.bf16 else FLOAT32_TOLERANCE
            if not found <= bound:
                raise ParityError(f"weights differ by {found:.2g} of the change, not {bound:.2g}")
        free_memory()


def resume(rows: RowFile, cfg: IVCLConfig, clips: int) -> None:
    """Stop a stage halfway and continue it from its checkpoint: the weights are the same."""
    loader, start, half = SyntheticLoader(cfg, clips), fresh_weights(cfg), RESUME_STEPS // 2
    for way in WAYS[:2]:
        what = f"resumed after {half} of {RESUME_STEPS} steps"
        with rows.row(what, way.name) as row, tempfile.TemporaryDirectory() as name:
            require(way)
            runs = {"whole": [RESUME_STEPS], "resumed": [half, RESUME_STEPS]}
            weights = {}
            for run, ends in runs.items():
                for end in ends:
                    model = build(cfg, way, start)
                    run_stage(
                        model, way, loader, end, clips, total=RESUME_STEPS + 1,
                        folder=Path(name) / run, save=half,
                    )  # fmt: skip
                weights[run] = copy.deepcopy(model.state_dict())
            row["difference"] = found = distance(weights["resumed"], weights["whole"], start)
            if not found <= FLOAT32_TOLERANCE:
                raise ParityError(f"weights differ by {found:.2g} of the change")
        free_memory()


def require(way: Variant) -> None:
    """Raise :class:`Skip` if a way cannot run here."""
    if reason := unsupported_reason(way):
        raise Skip(reason)


def distance(
    found: dict[str, Tensor], expected: dict[str, Tensor], start: dict[str, Tensor]
) -> float:
    """Return how far weights are from what is expected, relative to how far those have moved."""
    apart = moved = 0.0
    for name, value in expected.items():
        apart += (found[name].double() - value.double()).square().sum().item()
        moved += (value.double() - start[name].double()).square().sum().item()
    return (apart / moved) ** 0.5
