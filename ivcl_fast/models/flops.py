"""FLOPs of a training step, as PyTorch counts them for the model on the ``meta`` device.

Counts the matrix products of the fast model, including attention. Unused outputs are neither
computed nor counted; activations recomputed by ``--grad-checkpoint`` count once. Backward has two
products per forward product, except that pixels get no gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ivcl_fast.config import IVCLConfig
from ivcl_fast.models.ivcl import IVCL, IVCLClassifier, Supervised, pretraining_class


def training(cfg: IVCLConfig, num_classes: int | None = None, frames: float | None = None) -> int:
    """Return the FLOPs per clip of a training step, of a classifier if ``num_classes`` is given,
    else of pretraining without labels.

    ``frames``: frames encoded per clip, fewer than T if clips share frames.
    """
    if num_classes is None:
        return count(cfg, pretraining_class(cfg), pretraining_loss)
    build = functools.partial(IVCLClassifier, num_classes=num_classes)
    whole = count(cfg, build, call)
    # With a joint encoder or slots of videos, clips share no frames.
    if frames is None or cfg.objective == "joint" or cfg.video_slots:
        return whole
    encoder = count(cfg, build, lambda model, rows: model.slots(rows))
    return round(whole - encoder * (1 - frames / cfg.num_frames))


def supervised_training(cfg: IVCLConfig, num_classes: int) -> int:
    """Return the FLOPs per clip of supervised pretraining, forward and backward."""
    return count(cfg, functools.partial(Supervised, num_classes=num_classes), call)


def call(model: Any, rows: Tensor) -> Tensor:
    return model(rows)


def pretraining_loss(model: Any, rows: Tensor) -> Tensor:
    if isinstance(model, IVCL):
        return model(rows, seed=rows.new_zeros(1, dtype=torch.int64)).loss
    return model(rows).loss


def count(cfg: IVCLConfig, build: Callable[..., Any], run: Callable[[Any, Tensor], Tensor]) -> int:
    """Return the FLOPs of ``run(model, rows)`` on one clip, forward and backward."""
    with torch.device("meta"):
        model = build(cfg)
        rows = torch.zeros(1, cfg.num_frames, cfg.num_patches, cfg.patch_dim, dtype=torch.uint8)
    with FlopCounterMode(display=False) as counter:
        run(model, rows).sum().backward()
    return counter.get_total_flops()
