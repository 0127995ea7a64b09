"""Muon for stacks of equal-shaped matrices, replicated or sharded, on one or several ranks.

Muon (Jordan et al., 2024) replaces the momentum of a matrix by a nearby orthogonal matrix, which
takes fifteen matrix products. A transformer has about a hundred matrices of only a few shapes, so
matrices of one shape are stacked and updated together, with a tenth of the operations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ivcl_fast.distributed.parallel import is_sharded, local_tensor
from ivcl_fast.kernels._op import device_kind
from ivcl_fast.training.hardware import has_fast_bf16

CPU_BATCH = 2**18
"""Elements updated together on a CPU, few enough to stay in cache."""


class Muon(torch.optim.Muon):
    """Muon with AdamW's step size (``adjust_lr_fn="match_rms_adamw"``).

    Steps and state equal those of ``torch.optim.Muon``, bit for bit on a CPU with bfloat16
    hardware, except that a step overwrites the gradients. In addition,

    * matrices of one shape are updated together;
    * the iteration is in float32 on CPUs without hardware for bfloat16;
    * the learning rate may be a tensor on the device, so that a CUDA graph can record the step;
    * matrices may be DTensors, sharded by rows over all ranks, or (``replicated``) equal on all
      ranks. Each rank orthogonalises a part of the matrices, and the ranks exchange bfloat16.
    """

    def __init__(self, params: Any, *args: Any, replicated: bool = False, **kwargs: Any) -> None:
        super().__init__(params, *args, **kwargs)
        self.replicated = replicated

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient; ``closure`` is not supported."""
        assert closure is None
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._update(group, parameters, [p.grad for p in parameters])

    def _update(
        self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]
    ) -> None:
        lr, momentum = group["lr"], group["momentum"]
        weights = [local_tensor(p) for p in parameters]
        updates = [local_tensor(gradient) for gradient in gradients]
        momenta = [local_tensor(self._momentum(p)) for p in parameters]
        torch._foreach_lerp_(momenta, updates, 1 - momentum)
        torch._foreach_lerp_(updates, momenta, momentum)
        if not isinstance(lr, Tensor):
            torch._foreach_mul_(weights, 1 - lr * group["weight_decay"])
        by_shape: dict[torch.Size, list[int]] = {}
        for number, parameter in enumerate(parameters):
            by_shape.setdefault(parameter.shape, []).append(number)
        on_cpu = device_kind(weights[0].device) == "cpu"
        for shape, numbers in by_shape.items():
            share = Share(len(numbers), parameters[numbers[0]], self.replicated)
            stack = share.empty_stack()
            torch._foreach_copy_(share.rows(stack), [updates[n] for n in numbers])
            settings = group["ns_coefficients"], group["ns_steps"], group["eps"]
            own = orthogonalize(share.collect(stack), *settings, CPU_BATCH if on_cpu else None)
            stack = share.hand_back(own)
            same = [weights[n] for n in numbers]
            size = 0.2 * max(shape) ** 0.5  # AdamW's RMS step size
            # On a GPU, foreach operations take one launch if strides are equal.
            keeps = on_cpu and not isinstance(lr, Tensor)
            layout = torch.preserve_format if keeps else torch.contiguous_format
            steps = share.rows(stack.to(torch.float32, memory_format=layout))
            if isinstance(lr, Tensor):
                decay_and_add(same, steps, lr * size, group["weight_decay"] / size)
            else:
                torch._foreach_add_(same, steps, alpha=-lr * size)

    def _momentum(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        return state["momentum_buffer"]


def decay_and_add(
    weights: list[Tensor], steps: list[Tensor], lr: Tensor, weight_decay: float
) -> None:
    """Subtract ``lr * (step + weight_decay * weight)`` from every weight, in one pass.

    All tensors must be contiguous; PyTorch does not check this.
    """
    torch._fused_sgd_(
        weights, steps, [], weight_decay=weight_decay, momentum=0.0, lr=lr, dampening=0.0,
        nesterov=False, maximize=False, is_first_step=False,
    )  # fmt: skip


class Share:
    """This rank's share of ``count`` equal-shaped matrices, which it orthogonalises and exchanges.

    All ranks get the same number of matrices, padded with zeros.
    """

    def __init__(self, count: int, like: Tensor, replicated: bool) -> None:
        self.count, self.device, self.shape = count, like.device, like.shape
        self.sharded = is_sharded(like)
        self.group = like.device_mesh.get_group() if self.sharded else None  # type: ignore[attr-defined]
        shared = self.sharded or replicated
        self.ranks = dist.get_world_size(self.group) if shared else 1
        self.rank = dist.get_rank(self.group) if shared else 0
        self.own = -(-count // self.ranks)
        """Matrices of one rank."""
        self.local_rows = len(local_tensor(like))
        """Rows of each matrix on this rank."""
        self.height = -(-len(like) // self.ranks) if self.sharded else len(like)
        """Rows of each matrix on the first rank, which has the most."""

    def empty_stack(self) -> Tensor:
        """Return an empty stack for this rank's rows of all matrices."""
        shape = self.ranks * self.own, self.height, self.shape[1]
        is_filled = shape[:2] == (self.count, self.local_rows)
        new = torch.empty if is_filled else torch.zeros
        return new(shape, dtype=torch.bfloat16, device=self.device)

    def rows(self, stack: Tensor) -> list[Tensor]:
        """Return this rank's rows by matrix."""
        return [*stack[: self.count, : self.local_rows].unbind()]

    def collect(self, stack: Tensor) -> Tensor:
        """Return this rank's share of the matrices, in full."""
        if not self.sharded:
            return stack[self.rank * self.own :][: self.own]
        pieces = self._exchange(stack).unflatten(0, (self.ranks, self.own))
        return pieces.transpose(0, 1).flatten(1, 2)[:, : self.shape[0]]

    def hand_back(self, own: Tensor) -> Tensor:
        """Return this rank's rows of all matrices; the inverse of :meth:`collect`."""
        if self.ranks == 1:
            return own
        if not self.sharded:
            stack = own.new_empty(self.ranks * self.own, *self.shape)
            dist.all_gather_into_tensor(stack, own.contiguous(), self.group)
            return stack
        padded = own.new_zeros(self.own, self.ranks * self.height, self.shape[1])
        padded[:, : self.shape[0]] = own
        pieces = padded.unflatten(1, (self.ranks, self.height)).transpose(0, 1)
        return self._exchange(pieces.flatten(0, 1))

    def _exchange(self, stack: Tensor) -> Tensor:
        received = torch.empty_like(stack)
        dist.all_to_all_single(received, stack.contiguous(), group=self.group)
        return received


def orthogonalize(
    stack: Tensor,
    coefficients: tuple[float, float, float],
    steps: int,
    eps: float,
    batch: int | None = None,
) -> Tensor:
    """Approximate the nearest orthogonal matrices of a stack by Newton-Schulz iteration.

    Tall matrices are transposed, because the Gram matrix of the short side is smaller. With
    ``batch``, at most this many elements are computed together.
    """
    is_tall = stack.shape[1] > stack.shape[2]
    wide = stack.mT if is_tall else stack
    pieces = wide.split(len(wide) if batch is None else max(1, batch // wide[0].numel()))
    done = [newton_schulz(piece, coefficients, steps, eps) for piece in pieces]
    joined = torch.cat(done) if len(done) > 1 else done[0]
    return joined.mT if is_tall else joined


def newton_schulz(
    stack: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """Orthogonalise the wide matrices of a stack ``[n, short, long]``."""
    # On CPUs without bfloat16 hardware, a tiny model's step takes 1.3 s in bfloat16, 0.04 s in
    # float32.
    is_slow = device_kind(stack.device) == "cpu" and not has_fast_bf16(stack.device)
    x = stack.to(torch.float32 if is_slow else torch.bfloat16)
    multiply, multiply_add = torch.bmm, torch.baddbmm
    if len(stack) == 1:  # PyTorch's batched product of a single matrix is slower on a CPU
        multiply, multiply_add, x = torch.mm, torch.addmm, x[0]  # type: ignore[assignment]
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp_min(eps)
    a, b, c = coefficients
    for _ in range(steps):
        gram = multiply(x, x.mT)
        polynomial = multiply_add(gram, gram, gram, beta=b, alpha=c)
        x = multiply_add(x, polynomial, x, beta=a)
    return x.view_as(stack).to(stack)
