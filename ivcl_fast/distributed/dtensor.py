"""Tensors that are cut in pieces over ranks (DTensors), and those that are not, alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor  # takes a second to import


def is_sharded(tensor: Tensor) -> bool:
    """Whether this rank holds only a piece of it."""
    return hasattr(tensor, "full_tensor")


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor with all its pieces; all ranks have to ask."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def shard_like(tensor: Tensor, like: DTensor) -> DTensor:
    """This rank's piece of a tensor that every rank has whole, cut as ``like`` is."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def shard_if_needed(tensor: Tensor, like: Tensor) -> Tensor:
    """This rank's piece of a tensor that every rank has whole, if ``like`` is cut in pieces."""
    if not is_sharded(like) or tensor.shape != like.shape:
        return tensor
    return shard_like(tensor, like)  # type: ignore[arg-type]
