"""``sample_masks``: split the patches of every frame at random, on the device, in one launch.

The random numbers are counter-based: the hash of (seed, patch index) orders the patches of a frame,
and the first ``num_keep`` are kept. A mask depends only on the frame's seed, so it is the same
on CPU and GPU, in any batch and on any rank. One program per frame counts, for each patch, how many
hashes are smaller (it recomputes them rather than store them), and a running sum turns that into
the two ascending lists.

``hash_seeds`` derives the frames' seeds from those of clips with the same hash. On a CPU this takes
no time, so it has no C++ kernel.

There are no gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _triton
from ._arguments import Rule, check_arguments
from ._op import device_kind, has_kernel, register
from ._random import hash64, hashes
from ._triton import tl, triton
from .launch import cdiv, launch, next_power_of_2

MAX_KERNEL_PATCHES = 1024
"""Larger frames are sorted in PyTorch: counting costs N^2, and a program holds N hashes."""
STREAM_BLOCK = 256
"""Number of values per program of ``hash_seeds``."""
MAX_PATCHES = 2**16
"""Largest number of patches: the patch index replaces the 16 low bits of a hash."""


def _ref(seed: Tensor, num_patches: int, num_keep: int) -> tuple[Tensor, Tensor]:
    index = torch.arange(num_patches, device=seed.device)
    keys = ((hashes(seed, num_patches) >> 1) & (2**63 - 2**16)) | index
    order = keys.argsort(dim=-1)
    return order[..., :num_keep].sort().values, order[..., num_keep:].sort().values


@triton.jit
def _keys(seed, index):
    """The sort keys of ``_ref``, in uint64."""
    return ((hash64(seed, index) >> 17) << 16) | index.to(tl.uint64)


@triton.jit
def hash_seeds_kernel(seed_ptr, out_ptr, total, count, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    seed = tl.load(seed_ptr + at // count, mask=at < total, other=0).to(tl.uint64, bitcast=True)
    number = hash64(seed, at % count).to(tl.int64, bitcast=True)
    tl.store(out_ptr + at, number, mask=at < total)


@triton.jit
def sample_masks_kernel(
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
    is_kept = (rank < num_keep) & (patch < num_patches)
    kept_so_far = tl.cumsum(is_kept.to(tl.int32), axis=0)
    is_masked = (rank >= num_keep) & (patch < num_patches)
    keep_ptrs = keep_ptr + frame * num_keep + kept_so_far - 1
    mask_ptrs = mask_ptr + frame * (num_patches - num_keep) + patch - kept_so_far
    tl.store(keep_ptrs, patch.to(tl.int64), mask=is_kept)
    tl.store(mask_ptrs, patch.to(tl.int64), mask=is_masked)


def _empty_ids(seed: Tensor, num_patches: int, num_keep: int) -> tuple[Tensor, Tensor]:
    counts = (num_keep, num_patches - num_keep)
    keep, mask = (seed.new_empty(*seed.shape, count) for count in counts)
    return keep, mask


def _forward(seed: Tensor, num_patches: int, num_keep: int) -> tuple[Tensor, Tensor]:
    seed = seed.contiguous()
    keep, mask = _empty_ids(seed, num_patches, num_keep)
    block = next_power_of_2(num_patches)
    launch(
        sample_masks_kernel, (seed.numel(),), seed, keep, mask, num_patches, num_keep,
        BLOCK=block, CHUNK=16, num_warps=4 if block <= 512 else 8,
    )  # fmt: skip
    return keep, mask


def _empty_stream(seed: Tensor, count: int) -> Tensor:
    return seed.new_empty(*seed.shape, count)


def _stream(seed: Tensor, count: int) -> Tensor:
    out = _empty_stream(seed, count)
    total = out.numel()
    grid = (cdiv(total, STREAM_BLOCK),)
    launch(hash_seeds_kernel, grid, seed.contiguous(), out, total, count, BLOCK=STREAM_BLOCK)
    return out


def _count_is_wrong(count: int, sizes: dict[str, int]) -> str | None:
    return None if 1 <= count <= MAX_PATCHES else f"is not between 1 and {MAX_PATCHES}"


def _keep_is_wrong(count: int, sizes: dict[str, int]) -> str | None:
    most = sizes["num_patches"]
    return None if 0 <= count <= most else f"is not between 0 and num_patches ({most})"


_ARGUMENTS: dict[str, Rule] = {
    "seed": "int64 *", "num_patches": _count_is_wrong, "num_keep": _keep_is_wrong
}  # fmt: skip
_STREAM_ARGUMENTS: dict[str, Rule] = {"seed": "int64 *", "count": _count_is_wrong}
_op = register(
    "sample_masks(Tensor seed, SymInt num_patches, SymInt num_keep) -> (Tensor, Tensor)",
    ref=_ref,
    triton=_forward,
    arguments=_ARGUMENTS,
    fake=_empty_ids,
)


_stream_op = register(
    "hash_seeds(Tensor seed, SymInt count) -> Tensor",
    ref=hashes,
    triton=_stream,
    arguments=_STREAM_ARGUMENTS,
    fake=_empty_stream,
)


def hash_seeds(seed: Tensor, count: int) -> Tensor:
    """Return ``count`` random numbers for each seed, functions of (seed, index) only.

    ``seed`` int64 ``[...]``, ``count`` 1 to 65,536. Returns int64 ``[..., count]``, the same on
    every device. Raises ``ValueError`` naming ``seed`` or ``count``.
    """
    check_arguments(_STREAM_ARGUMENTS, {"seed": seed, "count": count})
    on_a_gpu = device_kind(seed.device) != "cpu" or _triton.INTERPRET
    return (_stream_op if on_a_gpu and has_kernel(seed) else hashes)(seed, count)


def sample_masks(seed: Tensor, num_patches: int, num_keep: int) -> tuple[Tensor, Tensor]:
    """Split the patches 0..num_patches-1 at random, uniformly and without replacement.

    ``seed`` int64 ``[...]``, one for each frame. ``num_patches`` is 1 to 65,536, ``num_keep`` 0 to
    ``num_patches``. Returns int64 ``ids_keep [..., num_keep]`` and ``ids_mask [..., num_patches -
    num_keep]``, both ascending, the same on every device.
    Raises ``ValueError`` naming ``seed``, ``num_patches`` or ``num_keep``.

    Example::

        >>> ids_keep, ids_mask = sample_masks(torch.tensor([0, 1]), num_patches=8, num_keep=3)
        >>> ids_keep.tolist()
        [[2, 4, 6], [3, 4, 7]]
    """
    arguments = {"seed": seed, "num_patches": num_patches, "num_keep": num_keep}
    check_arguments(_ARGUMENTS, arguments)
    run = _op if has_kernel(seed) and num_patches <= MAX_KERNEL_PATCHES else _ref
    return run(seed, num_patches, num_keep)
