"""Optimisers of a training stage: the learning-rate schedule, parameter groups, AdamW and Muon."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ivcl_fast.training.muon import Muon

NO_DECAY = ("pos_embed", "time_embed", "slot_tokens", "mask_token", "cls_token", "background")
"""Suffixes of the names of matrices without weight decay; vectors never have weight decay."""

HIDDEN = (".blocks.", ".slot_attention.", "decoder.layers.")
"""Substrings of the names of hidden matrices, which Muon updates."""

LR_BATCH = 16
"""Batch size that learning rates refer to if ``--lr-scaling`` is set."""


@dataclass(frozen=True)
class Schedule:
    """Length and learning rate of one stage; lengths are numbers of clips.

    ``Schedule(clips=30_000, lr=3e-3, batch_size=16).steps`` is 1875.
    """

    clips: int
    """Training clips in total, rounded down to whole steps (at least one)."""
    lr: float = 1e-3
    """Peak learning rate, reached after the warm-up."""
    batch_size: int = 16
    """Clips per optimiser step, over all ranks."""
    grad_accum_steps: int = 1
    """Number of micro-batches per rank, to save memory."""
    warmup_steps: int = 100
    """Steps of linear warm-up, at most a tenth of all steps."""
    weight_decay: float = 0.05
    """Weight decay; biases, norms, positions and tokens have none."""
    clip_norm: float = 1.0
    """Maximum gradient norm for clipping."""
    backbone_lr_scale: float = 1.0
    """Learning rate of all parameters except ``head.*``, relative to ``lr``."""
    optimizer: Literal["muon", "adamw"] = "adamw"
    """See :func:`make_optimizers`."""

    @property
    def steps(self) -> int:
        """Number of optimiser steps."""
        return max(1, self.clips // self.batch_size)

    @property
    def clips_seen(self) -> int:
        """Clips over all steps."""
        return self.steps * self.batch_size

    def lr_at(self, step: int) -> float:
        """Return the learning rate of a step, from 0: linear warm-up, then cosine decay to zero."""
        warmup = max(1, min(self.warmup_steps, self.steps // 10))
        if step < warmup:
            return self.lr * (step + 1) / warmup
        done = (step - warmup) / max(1, self.steps - warmup)
        return self.lr * 0.5 * (1 + math.cos(math.pi * done))


def scaled_lr(lr: float, batch_size: int, rule: Literal["none", "sqrt", "linear"]) -> float:
    """Scale a learning rate from a batch of :data:`LR_BATCH` clips to ``batch_size`` clips.

    ``sqrt`` suits adaptive optimisers (Malladi et al., 2022); ``linear`` is MAE's rule.
    """
    return lr * (batch_size / LR_BATCH) ** {"none": 0.0, "sqrt": 0.5, "linear": 1.0}[rule]


def make_optimizers(
    model: nn.Module, schedule: Schedule, capturable: bool = False
) -> list[torch.optim.Optimizer]:
    """Create fused AdamW for all parameters, or Muon for hidden matrices and AdamW for the rest.

    Parameters are grouped by weight decay and learning-rate scale; frozen ones are left out. With
    ``capturable`` the learning rates are tensors, so that a CUDA graph can record the step.
    """
    groups: dict[bool, dict[tuple[float, float], list[nn.Parameter]]] = {False: {}, True: {}}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        no_decay = parameter.ndim <= 1 or name.endswith(NO_DECAY)
        decay = 0.0 if no_decay else schedule.weight_decay
        scale = 1.0 if name.startswith("head.") else schedule.backbone_lr_scale
        hidden = parameter.ndim == 2 and any(part in name for part in HIDDEN)
        uses_muon = hidden and schedule.optimizer == "muon"
        groups[uses_muon].setdefault((decay, scale), []).append(parameter)
    adamw_groups, muon_groups = (
        [{"params": p, "weight_decay": d, "scale": s} for (d, s), p in groups[uses_muon].items()]
        for uses_muon in (False, True)
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
        optimizers.append(
            Muon(
                muon_groups,
                lr=schedule.lr,
                adjust_lr_fn="match_rms_adamw",
                replicated=dist.is_initialized(),
            )
        )
    return optimizers


def set_lr(optimizers: Sequence[torch.optim.Optimizer], lr: float) -> None:
    """Set the learning rate of every parameter group to ``lr`` times the group's scale."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr * group["scale"])
            else:
                group["lr"] = lr * group["scale"]
