"""Helpers that treat sharded tensors (DTensors) and plain tensors alike."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Return whether ``tensor`` is a DTensor, so that this rank holds only a shard."""
    return hasattr(tensor, "full_tensor")


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor (a collective call); return a plain tensor unchanged."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def local_tensor(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a sharded tensor, or a plain tensor unchanged."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def shard_if_needed(tensor: Tensor, like: Any) -> Tensor:
    """Shard a tensor like ``like``, if that is sharded and has the same shape.

    Every rank must hold the full ``tensor``.
    """
    if not is_sharded(like) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor  # takes a second to import

    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
