"""The training loop of one stage: any model, any loss, exact resume.

Every random choice is a function of (run seed, step, clip), so a run that was killed and goes on
from its last checkpoint follows the same curve, bit for bit on a CPU. The loop never waits for the
device except when it logs.

On several ranks (``distributed.py``) each computes its share of a batch, and gradients and losses
are means over all: the curve is one device's, to rounding.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ivcl_fast.data.loader import Batch, ClipLoader
from ivcl_fast.distributed import group as distributed
from ivcl_fast.distributed.dtensor import full_tensor, is_sharded
from ivcl_fast.errors import UserError
from ivcl_fast.progress import Bar
from ivcl_fast.training import checkpoint
from ivcl_fast.training.metrics_log import MetricsLog
from ivcl_fast.training.muon import CapturableMuon
from ivcl_fast.training.step_graph import StepGraph

log = logging.getLogger(__name__)

NO_DECAY = ("pos_embed", "time_embed", "slot_tokens", "mask_token", "cls_token")

Loss = Callable[[nn.Module, Batch, int | Tensor], Tensor]
"""Model, batch and step (in a CUDA graph int64 ``[]``) to a scalar loss."""


STOPPING = b"\nstopping: this step is finished and saved; a second Ctrl-C stops at once\n"


class Interrupted(Exception):
    """A signal asked the run to stop; a checkpoint has been written."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class NotFinite(UserError):
    """The loss or a gradient is NaN or infinite."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast one stage learns; lengths count clips, never seconds."""

    clips: int
    """Training clips in all, rounded down to whole steps (at least one)."""
    lr: float = 1e-3
    """Peak learning rate, after warm-up and before the cosine brings it to zero."""
    batch_size: int = 16
    """Clips per optimiser step, over all ranks."""
    grad_accum_steps: int = 1
    """Parts a rank's share of a batch is split into, to save memory."""
    warmup_steps: int = 100
    """Steps of linear warm-up, at most a tenth of all."""
    weight_decay: float = 0.05
    """Not applied to biases, norms, positions and tokens."""
    clip_norm: float = 1.0
    """Largest gradient norm."""
    backbone_lr_scale: float = 1.0
    """Learning rate of everything but ``head.*``, relative to ``lr``."""
    optimizer: Literal["muon", "adamw"] = "adamw"
    """See :func:`make_optimizers`."""

    @property
    def steps(self) -> int:
        return max(1, self.clips // self.batch_size)

    def lr_at(self, step: int) -> float:
        """Linear warm-up, then a cosine to zero at the end."""
        warmup = max(1, min(self.warmup_steps, self.steps // 10))
        if step < warmup:
            return self.lr * (step + 1) / warmup
        done = (step - warmup) / max(1, self.steps - warmup)
        return self.lr * 0.5 * (1 + math.cos(math.pi * done))


LR_BATCH = 16
"""Clips per step that learning rates are for, where they are scaled."""


def scaled_lr(lr: float, batch_size: int, rule: Literal["none", "sqrt", "linear"]) -> float:
    """A learning rate for ``batch_size`` clips per step, over all ranks.

    ``sqrt`` suits adaptive optimisers (Malladi et al., 2022), ``linear`` is MAE's rule.
    """
    return lr * (batch_size / LR_BATCH) ** {"none": 0.0, "sqrt": 0.5, "linear": 1.0}[rule]


def make_optimizers(
    model: nn.Module, schedule: Schedule, capturable: bool = False
) -> list[torch.optim.Optimizer]:
    """Fused AdamW for everything, or Muon for the blocks' matrices and AdamW for the rest.

    Parameters are grouped by weight decay and learning-rate scale (``group["scale"]``). Muon
    (Jordan et al., 2024) takes orthogonalised momentum steps, sized like AdamW's. ``capturable``
    ones can be recorded in a CUDA graph: their learning rates are tensors.
    """
    groups: dict[bool, dict[tuple[float, float], list[nn.Parameter]]] = {False: {}, True: {}}
    for name, parameter in model.named_parameters():
        plain = parameter.ndim <= 1 or name.endswith(NO_DECAY)
        decay = 0.0 if plain else schedule.weight_decay
        scale = 1.0 if name.startswith("head.") else schedule.backbone_lr_scale
        matrix = schedule.optimizer == "muon" and parameter.ndim == 2 and ".blocks." in name
        groups[matrix].setdefault((decay, scale), []).append(parameter)
    adamw_groups, muon_groups = (
        [{"params": p, "weight_decay": d, "scale": s} for (d, s), p in groups[matrix].items()]
        for matrix in (False, True)
    )
    if capturable:
        device = next(model.parameters()).device
        for group in adamw_groups + muon_groups:
            group["lr"] = torch.tensor(schedule.lr, device=device)
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            adamw_groups, lr=schedule.lr, betas=(0.9, 0.95), fused=True, capturable=capturable
        )
    ]
    if muon_groups:
        muon = CapturableMuon if capturable else torch.optim.Muon
        if any(map(is_sharded, model.parameters())):
            from ivcl_fast.distributed.fsdp import ShardedMuon as muon
        optimizers.append(muon(muon_groups, lr=schedule.lr, adjust_lr_fn="match_rms_adamw"))
    return optimizers


def set_lr(optimizers: Sequence[torch.optim.Optimizer], lr: float) -> None:
    """Set every group's learning rate, scaled as it wants."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr * group["scale"])
            else:
                group["lr"] = lr * group["scale"]


@contextmanager
def caught_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying of them; a second Ctrl-C kills at once.

    A second SIGTERM does not: schedulers and torchrun each send theirs. Of a Ctrl-C ranks hear
    twice, from the terminal and from torchrun.
    """
    caught: list[int] = []
    heard = 1 if distributed.world_size() == 1 else 2

    def note(signum: int, frame: Any) -> None:
        if not caught and distributed.is_main():
            os.write(2, STOPPING)  # print may be what was interrupted
        caught.append(signum)
        if caught.count(signal.SIGINT) == heard:
            signal.signal(signal.SIGINT, signal.SIG_DFL)

    previous = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


@dataclass
class Stage:
    """One stage of a run, e.g. ``pretrain``: what it trains, on what, and where it is kept."""

    name: str
    model: nn.Module
    loader: ClipLoader
    loss: Loss
    schedule: Schedule
    folder: Path
    metrics: MetricsLog
    device: torch.device
    amp: bool
    shard: bool = False
    """Cut parameters and optimiser state in pieces over the ranks, rather than repeat them."""
    cuda_graph: bool = False
    """Record the step as a CUDA graph, which has to be supported; see
    :func:`~ivcl_fast.training.step_graph.unsupported_reason`."""
    peak_clips_per_second: float | None = None
    """Where the device would be at its peak arithmetic rate, if that is known: ``mfu`` is the
    share of it that is reached."""
    validate: Callable[[], dict[str, float]] | None = None
    """Measures the model; called ``validations`` times, the last time at the end.

    Every rank measures all clips: the same result on all, shards are gathered in step, and it is
    a few short passes.
    """
    validations: int = 8
    log_every: int = 20
    """Steps between records; the only moments the loop waits for the device."""
    save_every: int = 500
    """Steps between checkpoints."""
    _losses: list[float] = field(default_factory=list, init=False)
    """Of the steps since the last record, as far as they are known here."""
    _on_device: list[Tensor] = field(default_factory=list, init=False)
    """Those of the steps after that: this rank's, not yet waited for."""

    def run(self) -> None:
        """Train to the end, going on from the newest checkpoint if there is one.

        Raises :class:`Interrupted` after SIGINT or SIGTERM (a checkpoint is kept) and
        :class:`NotFinite` when the loss is NaN or infinite (the last good checkpoint is kept).
        """
        model, optimizers, start = self._resume()
        learn = self._make_step(model, optimizers)
        self.metrics.rewind(self.name, start)
        model.train()
        total, size = self.schedule.steps, self.schedule.batch_size
        stopped = distributed.StopVote()
        with Bar(self.name, total * size, "clips") as bar, caught_signals() as caught:
            bar.start_at(start * size)
            clock = self._clock()
            for step, batch in self._batches(start, total):
                set_lr(optimizers, self.schedule.lr_at(step))
                self._on_device.append(learn(batch, step))
                done = step + 1
                if done % self.log_every == 0 or done == total:
                    record = self._record(step, clock)
                    self.metrics.write(self.name, done, done * size, **record)
                    note = f"loss {record['loss']:.4f}, waits for data {record['data_wait']:.0%}"
                    if "mfu" in record:
                        note += f", MFU {record['mfu']:.0%}"
                    bar.show(done * size, note)
                    self._losses.clear()
                    if self._validates_at(done):
                        self._validate(done)
                    clock = self._clock()
                stop = stopped(bool(caught), last=done == total)
                if done == total or stop or done % self.save_every == 0:
                    self._save(optimizers, done)
                if stop:
                    raise Interrupted(caught[0] if caught else signal.SIGTERM)

    def _clock(self) -> tuple[float, float]:
        """Now, and the time spent waiting for data so far; seconds."""
        return time.perf_counter(), self.loader.wait_seconds

    def _record(self, step: int, since: tuple[float, float]) -> dict[str, float]:
        """What is logged after ``step``, about the steps since ``since``."""
        self._sync_losses(step + 1)
        now, waited = self._clock()
        seconds = now - since[0]
        speed = len(self._losses) * self.schedule.batch_size / seconds
        record = {
            "loss": sum(self._losses) / len(self._losses),
            "lr": self.schedule.lr_at(step),
            "clips_per_second": speed,
            "data_wait": (waited - since[1]) / seconds,
        }
        if self.peak_clips_per_second:
            record["mfu"] = speed / self.peak_clips_per_second
        return record

    def _resume(self) -> tuple[nn.Module, list[torch.optim.Optimizer], int]:
        """What to train, its optimisers, and the steps already done."""
        saved = checkpoint.latest(self.folder)
        if saved is not None:
            self.model.load_state_dict(saved.model)
            self._losses += saved.state["pending_losses"]
        model = distributed.parallelize(self.model, self.shard)
        optimizers = make_optimizers(self.model, self.schedule, self.cuda_graph)
        if saved is not None:
            checkpoint.restore_optimizers(self.model, optimizers, saved.optimizer)
        return model, optimizers, saved.step if saved else 0

    def _save(self, optimizers: list[torch.optim.Optimizer], done: int) -> None:
        """Write a checkpoint; where that cannot be, the run goes on and the last one is kept."""
        self._sync_losses(done)
        state = {"pending_losses": self._losses}
        try:
            checkpoint.save(self.folder, done, self.model, optimizers, state)
        except OSError as error:
            log.warning(
                "%s: no checkpoint of step %d, those before it are kept and training goes on: %s",
                *(self.name, done, error),
            )

    def _batches(self, start: int, total: int) -> Iterator[tuple[int, Batch]]:
        """Batches of steps ``start`` to ``total - 1``, epoch after epoch."""
        if not len(self.loader):
            raise UserError(
                f"{self.name}: fewer usable training clips than one batch; lower --batch-size, "
                f"which is {self.schedule.batch_size}"
            )
        step = start
        while step < total:
            epoch, first = divmod(step, len(self.loader))
            for batch in self.loader.epoch(epoch, start_batch=first):
                yield step, batch
                step += 1
                if step == total:
                    return

    def _make_step(
        self, model: nn.Module, optimizers: list[torch.optim.Optimizer]
    ) -> Callable[[Batch, int], Tensor]:
        """What learns from the batch of a step and returns as :meth:`_step` does."""
        if not self.cuda_graph:
            return lambda batch, step: self._step(model, optimizers, batch, step)
        graph = StepGraph(
            lambda step, *tensors: self._step(model, optimizers, Batch(*tensors), step), self.device
        )
        return lambda batch, step: graph(step, *batch.tensors)

    def _step(
        self,
        model: nn.Module,
        optimizers: list[torch.optim.Optimizer],
        batch: Batch,
        step: int | Tensor,
    ) -> Tensor:
        """Learn from one batch; this rank's loss, or NaN if a gradient of any rank is broken.

        A CUDA graph may record it: it does nothing that depends on numbers on the device.
        """
        total = torch.zeros((), device=self.device)
        parts = list(batch.split(self.schedule.grad_accum_steps))
        try:
            for number, part in enumerate(parts, 1):
                part = part.to(self.device)
                share = len(part.clip_ids) / len(batch.clip_ids)
                with distributed.accumulating(model, more=number < len(parts)):
                    with torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp):
                        loss = self.loss(model, part, step) * share
                    loss.backward()
                total += loss.detach()
            norm = nn.utils.clip_grad_norm_(model.parameters(), self.schedule.clip_norm)
            for optimizer in optimizers:
                optimizer.step()
        finally:  # a recording that is broken off leaves gradients that nothing computed
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=True)
        return total.masked_fill(~full_tensor(norm).isfinite(), math.nan)

    def _sync_losses(self, step: int) -> None:
        """Wait for the losses up to ``step``; stops the run on all ranks if one is not finite."""
        if not self._on_device:
            return
        values = distributed.mean(torch.stack(self._on_device)).tolist()
        self._on_device.clear()
        for value in values:
            if not math.isfinite(value):
                raise NotFinite(
                    f"{self.name}: the loss or a gradient became {value} before step {step}; the "
                    f"checkpoints in {self.folder} are from before that. Try a lower --lr, or "
                    "--amp off"
                )
        self._losses += values

    def _validates_at(self, done: int) -> bool:
        if self.validate is None:
            return False
        marks = {
            self._log_step(self.schedule.steps * i // self.validations)
            for i in range(1, self.validations + 1)
        }
        return done in marks

    def _log_step(self, step: int) -> int:
        """The first step at or after ``step`` that is logged."""
        return min(self.schedule.steps, -(-step // self.log_every) * self.log_every)

    def _validate(self, done: int) -> None:
        assert self.validate is not None
        self.model.eval()
        values = self.validate()
        self.model.train()
        self.metrics.write(self.name, done, done * self.schedule.batch_size, **values)
