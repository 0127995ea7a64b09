"""Models cut in pieces over ranks (FSDP2), and Muon for their matrices."""

from __future__ import annotations

import warnings
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from ivcl_fast.distributed.dtensor import shard_like
from ivcl_fast.models.reference import Block
from ivcl_fast.training.muon import WholeMatrixMuon


def shard_model(model: nn.Module) -> nn.Module:
    """Cut the parameters of a model in place: each block's together, the others' together.

    Every rank has to hold the same weights.
    """
    # Nothing here works in place on what a block returns, which this warns of at every start.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")
    device = next(model.parameters()).device
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for part in model.modules():
        if isinstance(part, Block):
            fully_shard(part, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


class ShardedMuon(WholeMatrixMuon):
    """``torch.optim.Muon`` on DTensors: orthogonalises whole matrices, keeps cut ones.

    On DTensors the original runs every product of its iteration over the ranks: some fifteen
    collectives a matrix, and partial sums in bfloat16. Here each update is gathered once, in
    bfloat16 (the precision of the iteration), made orthogonal on every rank as replicas do it, and
    cut again. Momentum stays cut. Bit for bit the original's result on whole matrices.
    """

    def move(self, parameter: Any, update: Tensor, lr: Any, size: float) -> None:
        piece = shard_like(update, parameter)
        parameter.to_local().add_(piece.to_local(), alpha=-lr * size)
