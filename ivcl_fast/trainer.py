"""The training loop of one stage: any model, any loss, exact resume.

Every random choice is a function of (run seed, step, clip), so a run that was killed and goes on
from its last checkpoint follows the same curve, bit for bit on a CPU. The loop never waits for the
device except when it logs.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from . import checkpoint
from .data.feed import Batch, Feed
from .errors import UserError
from .files import write_text
from .progress import Bar

NO_DECAY = ("pos_embed", "time_embed", "slot_tokens", "mask_token", "cls_token")

Loss = Callable[[nn.Module, Batch, int], Tensor]
"""Model, batch and step to a scalar loss."""


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
    """Clips per optimiser step."""
    accum: int = 1
    """Parts a step's batch is split into, to save memory."""
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


def make_optimizers(model: nn.Module, schedule: Schedule) -> list[torch.optim.Optimizer]:
    """Fused AdamW for everything, or Muon for the blocks' matrices and AdamW for the rest.

    Parameters are grouped by weight decay and learning-rate scale (``group["scale"]``). Muon
    (Jordan et al., 2024) takes orthogonalised momentum steps, sized like AdamW's.
    """
    groups: dict[bool, dict[tuple[float, float], list[nn.Parameter]]] = {False: {}, True: {}}
    for name, parameter in model.named_parameters():
        plain = parameter.ndim <= 1 or name.endswith(NO_DECAY)
        decay = 0.0 if plain else schedule.weight_decay
        scale = 1.0 if name.startswith("head.") else schedule.backbone_lr_scale
        muon = schedule.optimizer == "muon" and parameter.ndim == 2 and ".blocks." in name
        groups[muon].setdefault((decay, scale), []).append(parameter)
    adamw_groups, muon_groups = (
        [{"params": p, "weight_decay": d, "scale": s} for (d, s), p in groups[muon].items()]
        for muon in (False, True)
    )
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(adamw_groups, lr=schedule.lr, betas=(0.9, 0.95), fused=True)
    ]
    if muon_groups:
        optimizers.append(
            torch.optim.Muon(muon_groups, lr=schedule.lr, adjust_lr_fn="match_rms_adamw")
        )
    return optimizers


class MetricsLog:
    """``metrics.jsonl`` and TensorBoard, in step; a resumed stage forgets what it will redo."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "metrics.jsonl"
        self.folder = folder
        self._board: Any = None

    def rewind(self, stage: str, step: int) -> None:
        """Drop records of ``stage`` beyond ``step``, and lines a kill left unfinished."""
        kept = [r for r in self.read() if r["stage"] != stage or r["step"] <= step]
        write_text(self.path, "".join(json.dumps(r) + "\n" for r in kept))

    def read(self) -> list[dict[str, Any]]:
        """All whole records so far."""
        if not self.path.exists():
            return []
        lines = self.path.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def write(self, stage: str, step: int, clips: int, **values: float) -> None:
        """Append one record."""
        with open(self.path, "a") as file:
            file.write(json.dumps({"stage": stage, "step": step, "clips": clips, **values}) + "\n")
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self.folder / "tensorboard"))
        for name, value in values.items():
            self._board.add_scalar(f"{stage}/{name}", value, clips)

    def close(self) -> None:
        if self._board is not None:
            self._board.close()


@contextmanager
def caught_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of dying of them; a second one kills at once."""
    caught: list[int] = []

    def note(signum: int, frame: Any) -> None:
        caught.append(signum)
        signal.signal(signum, signal.SIG_DFL)

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
    feed: Feed
    loss: Loss
    schedule: Schedule
    folder: Path
    metrics: MetricsLog
    device: torch.device
    amp: bool
    validate: Callable[[], dict[str, float]] | None = None
    """Measures the model; called ``validations`` times, the last time at the end."""
    validations: int = 4
    log_every: int = 20
    """Steps between records; the only moments the loop waits for the device."""
    save_every: int = 500
    """Steps between checkpoints."""

    def run(self) -> None:
        """Train to the end, going on from the newest checkpoint if there is one.

        Raises :class:`Interrupted` after SIGINT or SIGTERM (a checkpoint is kept) and
        :class:`NotFinite` when the loss is NaN or infinite (the last good checkpoint is kept).
        """
        optimizers = make_optimizers(self.model, self.schedule)
        start, losses = self._resume(optimizers)
        self.metrics.rewind(self.name, start)
        self.model.train()
        total, size = self.schedule.steps, self.schedule.batch_size
        with Bar(self.name, total * size, "clips") as bar, caught_signals() as caught:
            bar.start_at(start * size)
            clock = self._clock()
            for step, batch in self._batches(start, total):
                losses.append(self._step(optimizers, batch, step))
                done = step + 1
                if done % self.log_every == 0 or done == total:
                    record = self._record(losses, step, clock)
                    self.metrics.write(self.name, done, done * size, **record)
                    note = f"loss {record['loss']:.4f}, waits for data {record['data_wait']:.0%}"
                    bar.show(done * size, note)
                    losses = []
                    if self._validates_at(done):
                        self._validate(done)
                    clock = self._clock()
                if done == total or caught or done % self.save_every == 0:
                    state = {"pending_losses": self._finite(losses, done)}
                    checkpoint.save(self.folder, done, self.model, optimizers, state)
                if caught:
                    raise Interrupted(caught[0])

    def _clock(self) -> tuple[float, float]:
        """Now, and the time spent waiting for data so far; seconds."""
        return time.perf_counter(), self.feed.wait_seconds

    def _record(
        self, losses: list[Tensor], step: int, since: tuple[float, float]
    ) -> dict[str, float]:
        """What is logged after ``step``, about the steps since ``since``."""
        values = self._finite(losses, step + 1)
        now, waited = self._clock()
        seconds = now - since[0]
        return {
            "loss": sum(values) / len(values),
            "lr": self.schedule.lr_at(step),
            "clips_per_second": len(values) * self.schedule.batch_size / seconds,
            "data_wait": (waited - since[1]) / seconds,
        }

    def _resume(self, optimizers: list[torch.optim.Optimizer]) -> tuple[int, list[Tensor]]:
        """Steps already done, and the losses among them that no record holds yet."""
        saved = checkpoint.latest(self.folder)
        if saved is None:
            return 0, []
        self.model.load_state_dict(saved.model)
        checkpoint.restore_optimizers(self.model, optimizers, saved.optimizer)
        pending = [torch.tensor(x, device=self.device) for x in saved.state["pending_losses"]]
        return saved.step, pending

    def _batches(self, start: int, total: int) -> Iterator[tuple[int, Batch]]:
        """Batches of steps ``start`` to ``total - 1``, epoch after epoch."""
        if not len(self.feed):
            raise UserError(
                f"{self.name}: fewer usable training clips than one batch; lower --batch-size, "
                f"which is {self.schedule.batch_size}"
            )
        step = start
        while step < total:
            epoch, first = divmod(step, len(self.feed))
            for batch in self.feed.epoch(epoch, start_batch=first):
                yield step, batch
                step += 1
                if step == total:
                    return

    def _step(self, optimizers: list[torch.optim.Optimizer], batch: Batch, step: int) -> Tensor:
        lr = self.schedule.lr_at(step)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * group["scale"]
        total = torch.zeros((), device=self.device)
        for part in batch.split(self.schedule.accum):
            part = part.to(self.device)
            share = len(part.clip_ids) / len(batch.clip_ids)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp):
                loss = self.loss(self.model, part, step) * share
            loss.backward()
            total += loss.detach()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.schedule.clip_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return torch.where(norm.isfinite(), total, torch.nan)  # a broken gradient shows as well

    def _finite(self, losses: list[Tensor], step: int) -> list[float]:
        """The losses as numbers; stops the run if one is not finite."""
        values = torch.stack(losses).tolist() if losses else []
        for value in values:
            if not math.isfinite(value):
                raise NotFinite(
                    f"{self.name}: the loss or a gradient became {value} before step {step}; the "
                    f"checkpoints in {self.folder} are from before that. Try a lower --lr, or "
                    "--amp off"
                )
        return values

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
