"""Counter-based random numbers and dropout.

Each number is a function of a seed and an index. So it is the same on every device, in any batch
and on any rank, and a backward pass recomputes it instead of reading it. The C++ version is in
``csrc/random.h``.

Dropout of attention weights uses one seed. A sequence (one head of one frame) has a hash for every
key. The 24 upper bits of that hash, mixed with a query's index, decide whether to keep the pair.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ._triton import tl, triton

SEEDS = 2**62
"""Upper bound of random seeds."""
STEPS = 2**24
"""Dropout probabilities are multiples of 1 / STEPS."""
GOLDEN, MIX_1, MIX_2 = 0x9E3779B9, 0x7FEB352D, 0x846CA68B
"""32 bits of the golden ratio, and the factors of Wellons' ``lowbias32`` (2018)."""


def hashes(seed: Tensor, count: int) -> Tensor:
    """Hash int64 seeds ``[...]`` to int64 ``[..., count]``, functions of (seed, index) only."""
    index = torch.arange(1, count + 1, device=seed.device)
    x = seed.unsqueeze(-1) + index * -0x61C8864680B583EB
    # The finaliser of SplitMix64 (Steele et al., 2014), whose shifts are logical.
    x = (x ^ ((x >> 30) & (2**34 - 1))) * -0x40A7B892E31B1A47
    x = (x ^ ((x >> 27) & (2**37 - 1))) * -0x6B2FB644ECCEEE15
    return x ^ ((x >> 31) & (2**33 - 1))


@triton.jit
def hash64(seed, index):
    """The numbers of :func:`hashes`, in uint64: its shifts are logical."""
    x = seed + (index + 1).to(tl.uint64) * 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


def draw_seed(device: torch.device) -> Tensor:
    """Return a seed, int64 ``[]``, from PyTorch's generator of that device."""
    return torch.randint(SEEDS, (), device=device)


def drop_steps(dropout: float) -> int:
    """Convert a probability, 0 <= dropout < 1, to multiples of 1 / ``STEPS``."""
    return min(round(dropout * STEPS), STEPS - 1)


def kept(shape: Sequence[int], dropout: float, seed: Tensor) -> Tensor:
    """Which attention weights dropout keeps, bool ``shape``: ``[..., queries, keys]``."""
    *sequences, queries, keys = shape
    x = hashes(seed, math.prod(sequences) * keys).view(*sequences, 1, keys)
    query = torch.arange(queries, device=seed.device)[:, None]
    x = (x + query * GOLDEN) & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * MIX_1) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * MIX_2) & 0xFFFFFFFF
    return (x ^ (x >> 16)) >> 8 >= drop_steps(dropout)


def drop(weights: Tensor, dropout: float, seed: Tensor) -> Tensor:
    """Dropout of the attention weights ``[..., queries, keys]`` of all sequences."""
    scale = STEPS / (STEPS - drop_steps(dropout))
    return weights * kept(weights.shape, dropout, seed) * scale


@triton.jit
def drop_hash(seed_ptr, index):
    """Hash of a key for :func:`drop_pairs`; ``index``, int64: counts the keys of all sequences."""
    seed = tl.load(seed_ptr).to(tl.uint64, bitcast=True)
    return hash64(seed, index).to(tl.uint32)


@triton.jit
def drop_pairs(weights, key_hash, query, DROP_STEPS: tl.constexpr):
    """:func:`drop` of a tile of weights; ``key_hash`` and ``query`` broadcast to its shape."""
    scale: tl.constexpr = 16777216 / (16777216 - DROP_STEPS)
    x = key_hash + query.to(tl.uint32) * 0x9E3779B9
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return tl.where(((x ^ (x >> 16)) >> 8) >= DROP_STEPS, weights * scale, 0.0)
