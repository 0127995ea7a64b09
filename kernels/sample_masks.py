"""``sample_masks``: split the patches of every frame at random, on the device, in one launch.

Counter-based: the hash of (seed, patch index) orders the patches of a frame and the ``num_keep``
first stay. Nothing but the frame's own seed enters, so a mask is the same on CPU and GPU, in any
batch, on any rank. One program per frame counts, for each patch, the smaller hashes (hashes are
recomputed, not shared) and compacts the two ascending lists by a running sum. No gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._op import fused, register
from ._triton import tl, triton
from .launch import launch

MAX_FUSED_PATCHES = 1024
"""Above, ranks by counting (N^2) and one row of N in registers stop paying: the reference sorts."""
MAX_PATCHES = 2**16
"""A hash gives way to the patch index in its 16 low bits."""


def _hash64(x: Tensor) -> Tensor:
    """int64 to int64: the finaliser of SplitMix64 (Steele et al., 2014), shifts without sign."""
    x = (x ^ ((x >> 30) & (2**34 - 1))) * -0x40A7B892E31B1A47
    x = (x ^ ((x >> 27) & (2**37 - 1))) * -0x6B2FB644ECCEEE15
    return x ^ ((x >> 31) & (2**33 - 1))


def stream(seed: Tensor, count: int) -> Tensor:
    """int64 ``[...]`` seeds to int64 ``[..., count]``, each a function of (seed, index) alone.

    Gives each frame of a clip its own seed.
    """
    index = torch.arange(1, count + 1, device=seed.device)
    return _hash64(seed.unsqueeze(-1) + index * -0x61C8864680B583EB)


def _ref(seed: Tensor, num_patches: int, num_keep: int) -> tuple[Tensor, Tensor]:
    index = torch.arange(num_patches, device=seed.device)
    keys = ((stream(seed, num_patches) >> 1) & (2**63 - 2**16)) | index
    order = keys.argsort(dim=-1)
    return order[..., :num_keep].sort().values, order[..., num_keep:].sort().values


@triton.jit
def _keys(seed, index):
    """As ``_ref``, in uint64, whose shifts bring in zeros."""
    x = seed + (index + 1).to(tl.uint64) * 0x9E3779B97F4A7C15
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    x = x ^ (x >> 31)
    return ((x >> 17) << 16) | index.to(tl.uint64)


@triton.jit
def _kernel(
    seed_ptr, keep_ptr, mask_ptr, num_patches, num_keep,
    BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    frame = tl.program_id(0).to(tl.int64)
    seed = tl.load(seed_ptr + frame).to(tl.uint64, bitcast=True)
    patch = tl.arange(0, BLOCK)
    keys = _keys(seed, patch)
    rank = tl.zeros([BLOCK], tl.int32)
    for start in range(0, num_patches, CHUNK):
        other = start + tl.arange(0, CHUNK)
        smaller = (_keys(seed, other)[None, :] < keys[:, None]) & (other < num_patches)[None, :]
        rank += tl.sum(smaller.to(tl.int32), axis=1)
    kept = (rank < num_keep) & (patch < num_patches)
    kept_so_far = tl.cumsum(kept.to(tl.int32), axis=0)
    hidden = (rank >= num_keep) & (patch < num_patches)
    at_keep = keep_ptr + frame * num_keep + kept_so_far - 1
    at_mask = mask_ptr + frame * (num_patches - num_keep) + patch - kept_so_far
    tl.store(at_keep, patch.to(tl.int64), mask=kept)
    tl.store(at_mask, patch.to(tl.int64), mask=hidden)


def _empty(seed: Tensor, num_patches: int, num_keep: int) -> tuple[Tensor, Tensor]:
    counts = (num_keep, num_patches - num_keep)
    keep, mask = (seed.new_empty(*seed.shape, count) for count in counts)
    return keep, mask


def _sample(seed: Tensor, num_patches: int, num_keep: int) -> tuple[Tensor, Tensor]:
    seed = seed.contiguous()
    keep, mask = _empty(seed, num_patches, num_keep)
    if seed.numel():
        block = triton.next_power_of_2(num_patches)
        launch(
            _kernel, (seed.numel(),), seed, keep, mask, num_patches, num_keep,
            BLOCK=block, CHUNK=16, num_warps=4 if block <= 512 else 8,
        )  # fmt: skip
    return keep, mask


_op = register(
    "sample_masks(Tensor seed, SymInt num_patches, SymInt num_keep) -> (Tensor, Tensor)",
    ref=_ref,
    triton=_sample,
    fake=_empty,
)


def sample_masks(seed: Tensor, num_patches: int, num_keep: int) -> tuple[Tensor, Tensor]:
    """Split 0..num_patches-1 at random, uniformly and without replacement.

    int64 ``[...]`` seeds to int64 ``(ids_keep [..., num_keep], ids_mask [..., num_patches -
    num_keep])``, both ascending: equal bit for bit on every device. Raises ``ValueError`` naming
    ``seed``, ``num_patches`` or ``num_keep``.
    """
    if seed.dtype != torch.int64:
        raise ValueError(f"seed: dtype {seed.dtype} is not int64")
    if not 1 <= num_patches <= MAX_PATCHES:
        raise ValueError(f"num_patches: {num_patches} is not between 1 and {MAX_PATCHES}")
    if not 0 <= num_keep <= num_patches:
        raise ValueError(f"num_keep: {num_keep} is not between 0 and num_patches ({num_patches})")
    sample = _op if fused(seed) and num_patches <= MAX_FUSED_PATCHES else _ref
    return sample(seed, num_patches, num_keep)
