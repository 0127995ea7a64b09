"""Random choices of a training step, each a function of (run seed, step, clip) alone."""

from __future__ import annotations

import torch
from torch import Tensor

from ivcl_fast.models.reference import hash64


def clip_seeds(run_seed: int, step: int | Tensor, clip_ids: Tensor) -> Tensor:
    """One mask seed per clip: int64 ``[B]`` global clip indices to int64 ``[B]`` seeds.

    The same whatever the number of workers or ranks, and however a batch is split.
    """
    seed = torch.zeros((), dtype=torch.int64, device=clip_ids.device)
    for part in (run_seed, step, clip_ids):
        seed = hash64(seed + part)
    return seed
