"""Muon for stacks of equal matrices: whole or sharded, on one rank or shared by several.

Muon (Jordan et al., 2024) replaces the momentum of a matrix by an orthogonal matrix near it, which
takes fifteen matrix products. A transformer has a hundred matrices of a few shapes. So matrices of
one shape are stacked, and every operation treats a whole stack: a tenth as many operations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ivcl_fast.distributed.dtensor import is_sharded, local_tensor

Stacks = dict[torch.Size, Tensor]
"""Matrices ``[n, rows, columns]`` by the shape of one, in bfloat16."""

CPU_BATCH = 2**18
"""Elements that are treated together on a CPU: they stay in its cache."""


class Muon(torch.optim.Muon):
    """Muon that takes steps of the size of AdamW's (``adjust_lr_fn="match_rms_adamw"``).

    Steps and state are those of ``torch.optim.Muon``, on a CPU bit for bit; but a step overwrites
    the gradients. Beyond that,

    * matrices of one shape are updated together;
    * the learning rate may be a tensor on the device, so that a CUDA graph can record the step;
    * matrices may be DTensors, sharded by rows over all ranks. Their momentum stays sharded. Every
      rank collects a part of the matrices in full, makes those orthogonal, and hands the rows back;
    * with ``replicated``, parameters and gradients are equal on all ranks. Every rank makes a part
      of the matrices orthogonal, and all ranks get the results.

    Ranks exchange bfloat16, the precision of the iteration.
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
        shares = {
            shape: Share(len(numbers), parameters[numbers[0]], self.replicated)
            for shape, numbers in by_shape.items()
        }
        stacks = {shape: share.empty_stack() for shape, share in shares.items()}
        torch._foreach_copy_(
            [row for shape, share in shares.items() for row in share.rows(stacks[shape])],
            [updates[n] for numbers in by_shape.values() for n in numbers],
        )
        stacks = {shape: share.collect(stacks[shape]) for shape, share in shares.items()}
        batch = CPU_BATCH if weights[0].device.type == "cpu" else None
        stacks = orthogonalize(
            stacks, group["ns_coefficients"], group["ns_steps"], group["eps"], batch
        )
        for shape, numbers in by_shape.items():
            stack = shares[shape].hand_back(stacks.pop(shape))
            size = 0.2 * max(shape) ** 0.5  # matches the mean size of AdamW's steps
            same = [weights[n] for n in numbers]
            # On a GPU, operations on many tensors take one launch if strides are equal.
            keeps = batch is not None and not isinstance(lr, Tensor)
            layout = torch.preserve_format if keeps else torch.contiguous_format
            steps = shares[shape].rows(stack.to(torch.float32, memory_format=layout))
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

    All tensors have to be contiguous: PyTorch does not look.
    """
    torch._fused_sgd_(
        weights, steps, [], weight_decay=weight_decay, momentum=0.0, lr=lr, dampening=0.0,
        nesterov=False, maximize=False, is_first_step=False,
    )  # fmt: skip


class Share:
    """This rank's share of ``count`` equal matrices: which it makes orthogonal, and their exchange.

    All ranks get equally many matrices; where that does not come out even, zeros fill up.
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
        """Rows of every matrix that this rank holds."""
        self.height = -(-len(like) // self.ranks) if self.sharded else len(like)
        """Rows of every matrix that the first rank holds, which has the most."""

    def empty_stack(self) -> Tensor:
        """Return a stack for the rows that this rank holds of all matrices."""
        shape = self.ranks * self.own, self.height, self.shape[1]
        is_filled = shape[:2] == (self.count, self.local_rows)
        new = torch.empty if is_filled else torch.zeros
        return new(shape, dtype=torch.bfloat16, device=self.device)

    def rows(self, stack: Tensor) -> list[Tensor]:
        """Return the rows that this rank holds, matrix by matrix."""
        return [*stack[: self.count, : self.local_rows].unbind()]

    def collect(self, stack: Tensor) -> Tensor:
        """Return this rank's share of the matrices, in full."""
        if not self.sharded:
            return stack[self.rank * self.own :][: self.own]
        pieces = self._exchange(stack).unflatten(0, (self.ranks, self.own))
        return pieces.transpose(0, 1).flatten(1, 2)[:, : self.shape[0]]

    def hand_back(self, own: Tensor) -> Tensor:
        """Return what this rank holds of all matrices; the inverse of :meth:`collect`."""
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
    stacks: Stacks,
    coefficients: tuple[float, float, float],
    steps: int,
    eps: float,
    batch: int | None = None,
) -> Stacks:
    """Approximate the orthogonal matrices nearest to matrices by Newton-Schulz iteration.

    Tall matrices are transposed, because the Gram matrix of the short side is the smaller one.
    Without ``batch`` they go together with wide ones of the same size, for the fewest launches;
    otherwise no more than so many elements of one shape do.
    """
    together: dict[Any, list[torch.Size]] = {}
    for shape in stacks:
        together.setdefault(shape if batch else (min(shape), max(shape)), []).append(shape)
    result: Stacks = {}
    for shapes in together.values():
        parts = [stacks[shape].mT if shape[0] > shape[1] else stacks[shape] for shape in shapes]
        x = torch.cat(parts) if len(parts) > 1 else parts[0]
        count = max(1, batch // shapes[0].numel()) if batch else len(x)
        done = [newton_schulz(piece, coefficients, steps, eps) for piece in x.split(count)]
        x = torch.cat(done) if len(done) > 1 else done[0]
        for shape, part in zip(shapes, x.split([len(part) for part in parts]), strict=True):
            result[shape] = part.mT if shape[0] > shape[1] else part
    return result


def newton_schulz(
    x: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """Return the orthogonal matrices near ``x`` ``[n, short, long]``."""
    matrix, multiply_add = x, torch.baddbmm
    if len(x) == 1:  # PyTorch's batched product of a single matrix is slower on a CPU
        matrix, multiply_add = x[0], torch.addmm  # type: ignore[assignment]
    a, b, c = coefficients
    norm = torch.linalg.vector_norm(matrix, dim=(-2, -1), keepdim=True)
    matrix = matrix / norm.clamp(min=eps)
    for _ in range(steps):
        gram = matrix @ matrix.mT
        gram = multiply_add(gram, gram, gram, beta=b, alpha=c)
        matrix = multiply_add(matrix, gram, matrix, beta=a)
    return matrix.view_as(x)
