"""Models cut in pieces over ranks (FSDP2), and Muon for their matrices."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from .distributed import whole
from .muon import orthogonalised
from .reference import Block


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


def piece_of(tensor: Tensor, like: DTensor) -> DTensor:
    """This rank's piece of a tensor that every rank has whole, cut as ``like`` is."""
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


class ShardedMuon(torch.optim.Muon):
    """``torch.optim.Muon`` on DTensors: orthogonalises whole matrices, keeps cut ones.

    On DTensors the original runs every product of its iteration over the ranks: some fifteen
    collectives a matrix, and partial sums in bfloat16. Here each update is gathered once, in
    bfloat16 (the precision of the iteration), made orthogonal on every rank as replicas do it, and
    cut again. Momentum stays cut. Bit for bit the original's result on whole matrices.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step; ``closure`` is not supported."""
        assert closure is None
        for group in self.param_groups:
            a, b, c = group["ns_coefficients"]
            for parameter in group["params"]:
                gradient, state = parameter.grad, self.state[parameter]
                if gradient is None:
                    continue
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(gradient)
                momentum = state["momentum_buffer"]
                momentum.lerp_(gradient, 1 - group["momentum"])
                update = gradient.lerp(momentum, group["momentum"]).bfloat16()
                update = orthogonalised(whole(update), a, b, c, group["ns_steps"], group["eps"])
                size = 0.2 * max(parameter.shape) ** 0.5  # an AdamW step's, in the mean
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                piece = piece_of(update, parameter)
                parameter.to_local().add_(piece.to_local(), alpha=-group["lr"] * size)
