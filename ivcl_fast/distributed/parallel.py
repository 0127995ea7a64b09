"""Models on several ranks: replicas (DDP) or shards (FSDP2), whose tensors are DTensors."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def parallelize(
    model: nn.Module, shard_by: type[nn.Module] | None = None, amp: bool = False
) -> nn.Module:
    """Wrap ``model`` so that its gradients are averaged over all ranks.

    ``shard_by``: the class of the model's blocks, to shard it in place (FSDP2) instead of holding
    replicas (DDP); optimisers must be created after the call. With ``amp``, ranks gather the
    shards' parameters in bfloat16; shards and gradients stay float32.
    """
    if not dist.is_initialized():
        return model
    device = next(model.parameters()).device
    if shard_by is None:
        device_ids = [device] if device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids, gradient_as_bucket_view=True)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    # FSDP2 warns about in-place operations on a block's output, of which there are none.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    precision = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if amp else None,
        reduce_dtype=torch.float32 if amp else None,
        cast_forward_inputs=False,  # the residual sum stays float32
    )
    for part in model.modules():  # each block separately, then the rest
        if isinstance(part, shard_by):
            fully_shard(part, mesh=mesh, mp_policy=precision)
    fully_shard(model, mesh=mesh, mp_policy=precision)
    return model


def no_sync_if(model: nn.Module, more_to_come: bool) -> AbstractContextManager[None]:
    """Skip the gradient all-reduce of replicas in this backward pass if another one follows."""
    if more_to_come and isinstance(model, DistributedDataParallel):
        return model.no_sync()
    return nullcontext()


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
