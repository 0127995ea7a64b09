"""Seeds of the random choices in a training step, as functions of (run seed, step, clip)."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ivcl_fast.kernels import hash_seeds
from ivcl_fast.models.reference import hash64

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
