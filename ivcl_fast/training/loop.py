"""The training loop of one stage, for any model and loss, with exact resume.

Every random choice is a function of (run seed, step, clip), so a run that resumes from its last
checkpoint follows the same curve, bit for bit on a CPU. The loop waits for the device only to log,
validate or save.

Each rank computes a part of the batch, and gradients and losses are averaged over all ranks, so the
curve equals that of a single device up to rounding.
"""

from __future__ import annotations

import logging
import math
import os
import shlex
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from torch import Tensor, nn

from ivcl_fast.data.loader import Batch, ClipLoader
from ivcl_fast.distributed import group as distributed
from ivcl_fast.distributed.parallel import full_tensor, no_sync_if, parallelize
from ivcl_fast.errors import UserError
from ivcl_fast.kernels import hash_seeds
from ivcl_fast.kernels.linear import cast_together, weights_to_cast
from ivcl_fast.models.reference import Block, hash64
from ivcl_fast.progress import Bar
from ivcl_fast.training import checkpoint
from ivcl_fast.training.hardware import Execution
from ivcl_fast.training.metrics_log import MetricsLog
from ivcl_fast.training.optim import Schedule, make_optimizers, set_lr
from ivcl_fast.training.step_graph import StepGraph

log = logging.getLogger(__name__)

Loss = Callable[[nn.Module, Batch, int | Tensor], Tensor]
"""Maps a model, a batch and the step number (in a CUDA graph int64 ``[]``) to a scalar loss."""
STOPPING = b"\nstopping after this step, which is saved; press Ctrl-C again to stop at once\n"


def nan_unless_finite(loss: Tensor, norm: Tensor) -> Tensor:
    """Return the loss, or NaN if the gradient norm is not finite."""
    return loss + 0 * norm  # 0 times infinity is NaN


@dataclass(frozen=True)
class Intervals:
    """How often a stage logs, saves and validates."""

    log: int = 20
    """Steps between log records, for which the loop waits for the device."""
    save: int = 5000
    """Steps between checkpoints."""
    save_minutes: float = 10.0
    """Maximum minutes between checkpoints."""
    validations: int = 8
    """Number of validations, the last one at the end."""


@dataclass
class Stage:
    """Model, data and output folder of one stage of a run, such as ``pretrain``.

    :meth:`run` trains ``model`` in place.
    """

    name: str
    model: nn.Module
    loader: ClipLoader
    loss: Loss
    schedule: Schedule
    folder: Path
    """Folder of the training checkpoints."""
    metrics: MetricsLog
    execution: Execution
    """How steps run. :func:`~ivcl_fast.training.step_graph.unsupported_reason` says when a CUDA
    graph is not supported."""
    every: Intervals = Intervals()
    validate: Callable[[], dict[str, float]] | None = None
    """Validates the model. Every rank evaluates all clips, so that all get the same result and
    gather sharded parameters together.
    """
    peak_clips_per_second: float | None = None
    """Clips per second at the peak FLOP/s of all devices, if known; ``mfu`` (model FLOPs
    utilisation) is the fraction that training reaches."""
    _optimizers: list[torch.optim.Optimizer] = field(default_factory=list, init=False)
    _losses: list[float] = field(default_factory=list, init=False)
    """Losses of the steps since the last record, averaged over all ranks."""
    _pending: list[Tensor] = field(default_factory=list, init=False)
    """Losses of later steps, still on this rank's device."""

    def run(self) -> None:
        """Train to the end, starting from the newest checkpoint if there is one.

        Raises :class:`~ivcl_fast.distributed.group.Interrupted` after SIGINT or SIGTERM, once a
        checkpoint is written, and :class:`UserError` if the loss becomes NaN or infinite; earlier
        checkpoints are kept.
        """
        model, start = self._resume()
        train_step = self._make_step(model)
        self.metrics.rewind(self.name, start)
        model.train()
        total, size = self.schedule.steps, self.schedule.batch_size
        if 0 < start < total:
            distributed.print_rank0(f"{self.name}: resuming from step {start:,} of {total:,}")
        with Bar(self.name, total * size, "clips") as bar, caught_signals() as caught:
            bar(start * size)
            clock, saved = self._clock(), time.monotonic()
            for step, batch in self._batches(start, total):
                set_lr(self._optimizers, self.schedule.lr_at(step))
                self._pending.append(train_step(batch, step))
                done = step + 1
                bar(done * size)
                if done % self.every.log == 0 or done == total:
                    self._log(step, clock, bar)
                    clock = self._clock()
                is_due = time.monotonic() - saved >= 60 * self.every.save_minutes
                stop, is_due = distributed.any_rank(bool(caught), is_due)
                if done == total or stop or is_due or done % self.every.save == 0:
                    self._save(done)
                    saved = time.monotonic()
                if stop:
                    break
            # A signal may have arrived since then, or during the last checkpoint. Wait for rank 0,
            # which writes it, because torchrun ends all ranks with the first one.
            distributed.barrier()
            if any(distributed.any_rank(bool(caught))):
                signum = caught[0] if caught else signal.SIGTERM
                run = shlex.quote(str(self.metrics.folder))
                raise distributed.Interrupted(signum, f"--resume {run} continues")

    def _log(self, step: int, since: tuple[float, float, int], bar: Bar) -> None:
        """Log the steps up to ``step``, timed from ``since``, and validate if due."""
        done, size = step + 1, self.schedule.batch_size
        self._sync_losses(done)
        pairs = zip(self._clock(), since, strict=True)
        seconds, waited, losses = (now - before for now, before in pairs)
        speed = losses * size / seconds
        record = {
            "loss": sum(self._losses) / len(self._losses),
            "lr": self.schedule.lr_at(step),
            "clips_per_second": speed,
            "data_wait": waited / seconds,
        }
        note = f"loss {record['loss']:.4f}, waits for data {record['data_wait']:.0%}"
        if self.peak_clips_per_second:
            record["mfu"] = speed / self.peak_clips_per_second
            note += f", MFU {record['mfu']:.0%}"
        self.metrics.write(self.name, done, done * size, **record)
        bar(done * size, note=note)
        self._losses.clear()
        self._validate_if_due(done)

    def _clock(self) -> tuple[float, float, int]:
        """Return the time, the seconds spent waiting for data, and the losses not logged yet."""
        return time.perf_counter(), self.loader.wait_seconds, len(self._losses)

    def _resume(self) -> tuple[nn.Module, int]:
        """Return the parallelised model and the number of steps already done."""
        saved = checkpoint.latest(self.folder)
        if saved is not None:
            self.model.load_state_dict(saved.model)
            self._losses += saved.state["pending_losses"]
        shard_by = Block if self.execution.shard else None
        model = parallelize(self.model, shard_by, self.execution.amp)
        self._optimizers = make_optimizers(self.model, self.schedule, self.execution.cuda_graph)
        if saved is not None:
            checkpoint.restore_optimizers(self.model, self._optimizers, saved.optimizer)
        return model, saved.step if saved else 0

    def _save(self, done: int) -> None:
        """Write a checkpoint, after checking that all losses are finite.

        If it cannot be written, a line is logged, and earlier checkpoints are kept.
        """
        self._sync_losses(done)
        state = {"pending_losses": [*self._losses]}
        self.metrics.sync()
        saved = checkpoint.snapshot(done, self.model, self._optimizers, state)
        try:
            if distributed.is_main():
                checkpoint.store(self.folder, saved)
        except OSError as error:
            log.warning(
                "%s: no checkpoint of step %d could be written: %s; training continues, and the "
                "checkpoints before it are kept",
                *(self.name, done, error),
            )

    def _batches(self, start: int, total: int) -> Iterator[tuple[int, Batch]]:
        """Yield the batches of steps ``start`` to ``total - 1``, over all epochs."""
        step = start
        while step < total:
            epoch, first = divmod(step, len(self.loader))
            for batch in self.loader.epoch(epoch, start_batch=first):
                yield step, batch
                step += 1
                if step == total:
                    return

    def _make_step(self, model: nn.Module) -> Callable[[Batch, int], Tensor]:
        """Return :meth:`_step`, as a CUDA graph if requested."""
        if not self.execution.cuda_graph:
            return lambda batch, step: self._step(model, batch, step)
        graph = StepGraph(
            lambda step, *tensors: self._step(model, Batch(*tensors), step), self.execution.device
        )
        return lambda batch, step: graph(step, *batch.tensors)

    def _step(self, model: nn.Module, batch: Batch, step: int | Tensor) -> Tensor:
        """Update the weights; return this rank's loss, or NaN if any rank's gradient is not finite.

        A CUDA graph may record this, so no control flow depends on device values.
        """
        device, amp = self.execution.device, self.execution.amp
        losses: list[Tensor] = []
        parts = list(batch.split(self.schedule.grad_accum_steps))
        shares = [len(part.clip_ids) / len(batch.clip_ids) for part in parts]
        if self.execution.shard:  # collective: also for ranks whose batch lacks clips
            missing = self.schedule.grad_accum_steps - len(parts)
            parts += parts[-1:] * missing
            shares += [0.0] * missing
        try:
            with self._weights_cast():
                for number, (part, share) in enumerate(zip(parts, shares, strict=True), 1):
                    part = part.to(device)
                    with no_sync_if(model, more_to_come=number < len(parts)):
                        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
                            loss = self.loss(model, part, step)
                        if len(parts) > 1:
                            loss = loss * share
                        loss.backward()
                    losses.append(loss.detach())
            norm = nn.utils.clip_grad_norm_(model.parameters(), self.schedule.clip_norm)
            for optimizer in self._optimizers:
                optimizer.step()
        finally:  # a failed graph recording leaves uninitialised gradients
            for optimizer in self._optimizers:
                optimizer.zero_grad(set_to_none=True)
        return nan_unless_finite(sum(losses[1:], losses[0]), full_tensor(norm))

    def _weights_cast(self) -> AbstractContextManager[None]:
        """On a GPU, cast all weights once per step to save kernel launches."""
        how = self.execution
        if not how.amp or how.device.type != "cuda" or how.shard:
            return nullcontext()
        return cast_together(weights_to_cast(self.model), torch.bfloat16)

    def _sync_losses(self, step: int) -> None:
        """Wait for the losses of all steps before ``step``.

        Raises :class:`UserError` on all ranks if one is not finite.
        """
        if not self._pending:
            return
        values = distributed.mean_over_ranks(torch.stack(self._pending)).tolist()
        self._pending.clear()
        for value in values:
            if not math.isfinite(value):
                raise UserError(
                    f"{self.name}: the loss or a gradient became {value} before step {step}; the "
                    f"checkpoints in {self.folder} are older. Try a lower --lr, or --amp off"
                )
        self._losses += values

    def _validate_if_due(self, done: int) -> None:
        """Validate at the first logged step at or after each of the evenly spaced steps."""
        steps, every, times = self.schedule.steps, self.every.log, self.every.validations
        marks = (steps * i // times for i in range(1, times + 1))
        due = {min(steps, -(-mark // every) * every) for mark in marks}
        if self.validate is None or done not in due:
            return
        self.model.eval()
        values = self.validate()
        self.model.train()
        self.metrics.write(self.name, done, done * self.schedule.batch_size, **values)


@contextmanager
def caught_signals() -> Iterator[list[int]]:
    """Collect received SIGINT and SIGTERM signals instead of exiting; a second Ctrl-C kills.

    Ranks receive each Ctrl-C twice, from the terminal and from torchrun.
    """
    caught: list[int] = []
    per_ctrl_c = 1 if distributed.world_size() == 1 else 2

    def handle(signum: int, frame: FrameType | None) -> None:
        if not caught and distributed.is_main():
            os.write(2, STOPPING)  # print is not reentrant, and may have been interrupted
        caught.append(signum)
        if caught.count(signal.SIGINT) == per_ctrl_c:
            signal.signal(signal.SIGINT, signal.SIG_DFL)

    previous = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


# --- Seeds of masks -------------------------------------------------------------------------------

OFFSET = -0x61C8864680B583EB
"""Increment that ``hash_seeds`` adds to a seed for its first number."""


def clip_seeds(run_seed: int, step: int | Tensor, clip_ids: Tensor) -> Tensor:
    """Return a mask seed per clip, int64 ``[B]``, from global clip indices, int64 ``[B]``.

    The seeds do not depend on the number of workers or ranks, nor on how a batch is split.
    """
    of_run = mix(run_seed)
    of_step: int | Tensor
    if isinstance(step, Tensor):
        of_step = hash_seeds(step + as_int64(of_run - OFFSET), 1).squeeze(-1) - OFFSET
    else:
        of_step = as_int64(mix(of_run + step) - OFFSET)
    return hash_seeds(clip_ids + of_step, 1).squeeze(-1)


def mix(number: int) -> int:
    """Return ``hash64`` of a number on the host: a CUDA graph could not record a CPU operation."""
    return int(hash64(np.array([as_int64(number)]))[0])  # type: ignore[arg-type]


def as_int64(number: int) -> int:
    """Return the number modulo 2^64 as a signed integer."""
    return (number + 2**63) % 2**64 - 2**63
