"""Seeds of the random choices in a training step: functions of (run seed, step, clip) alone."""

from __future__ import annotations

import torch
from torch import Tensor

from ivcl_fast.models.reference import hash64


def clip_seeds(run_seed: int, step: int | Tensor, clip_ids: Tensor) -> Tensor:
    """Compute a mask seed for every clip: int64 ``[B]`` from global clip indices, int64 ``[B]``.

    The seeds do not depend on the number of workers or ranks, nor on how a batch is split.
    """
    seed = torch.zeros((), dtype=torch.int64, device=clip_ids.device)
    for part in (run_seed, step, clip_ids):
        seed = hash64(seed + part)
    return seed
