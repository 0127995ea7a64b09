"""Helpers that treat sharded tensors (DTensors) and plain tensors alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor  # takes a second to import


def is_sharded(tensor: Tensor) -> bool:
    """Whether ``tensor`` is a DTensor, of which this rank holds only a shard."""
    return hasattr(tensor, "full_tensor")


def full_tensor(tensor: Tensor) -> Tensor:
    """Gather a sharded tensor, on all ranks together; a plain tensor is returned as it is."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def local_tensor(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a sharded tensor; a plain tensor is returned as it is."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def shard_like(tensor: Tensor, like: DTensor) -> DTensor:
    """Shard a tensor that every rank holds in full, in the same way as ``like``."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def shard_if_needed(tensor: Tensor, like: Tensor) -> Tensor:
    """Shard a tensor in the same way as ``like``, if that is sharded and has the same shape."""
    if not is_sharded(like) or tensor.shape != like.shape:
        return tensor
    return shard_like(tensor, like)  # type: ignore[arg-type]
