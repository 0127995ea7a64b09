"""Helpers that treat sharded tensors (DTensors) and plain tensors alike."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def is_sharded(tensor: Tensor) -> bool:
    """Whether ``tensor`` is a DTensor, of which this rank holds only a shard."""
    return hasattr(tensor, "full_tensor")


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor, on all ranks together; a plain tensor is returned as it is."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def local_tensor(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a sharded tensor; a plain tensor is returned as it is."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def shard_if_needed(tensor: Tensor, like: Any) -> Tensor:
    """Shard a tensor in the same way as ``like``, if that is sharded and has the same shape.

    Every rank has to hold the whole ``tensor``.
    """
    if not is_sharded(like) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor  # takes a second to import

    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
