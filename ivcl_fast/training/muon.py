"""Muon (Jordan et al., 2024), beside ``torch.optim.Muon``: where that cannot run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ivcl_fast.distributed.dtensor import full_tensor


def orthogonalised(x: Tensor, a: float, b: float, c: float, steps: int, eps: float) -> Tensor:
    """The nearest orthogonal matrix, roughly: Newton-Schulz on the short side (Jordan, 2024)."""
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class WholeMatrixMuon(torch.optim.Muon):
    """``torch.optim.Muon``, its step written again; subclasses say how a parameter moves.

    A matrix that is cut in pieces over ranks is made orthogonal as a whole, on every rank.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One step; ``closure`` is not supported."""
        assert closure is None
        for group in self.param_groups:
            a, b, c = group["ns_coefficients"]
            keep = 1 - group["lr"] * group["weight_decay"]
            for parameter in group["params"]:
                gradient, state = parameter.grad, self.state[parameter]
                if gradient is None:
                    continue
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(gradient)
                momentum = state["momentum_buffer"]
                momentum.lerp_(gradient, 1 - group["momentum"])
                update = full_tensor(gradient.lerp(momentum, group["momentum"]).bfloat16())
                update = orthogonalised(update, a, b, c, group["ns_steps"], group["eps"])
                size = 0.2 * max(parameter.shape) ** 0.5  # an AdamW step's, in the mean
                parameter.mul_(keep)
                self.move(parameter, update, group["lr"], size)

    def move(self, parameter: Tensor, update: Tensor, lr: Any, size: float) -> None:
        """Take ``lr * size * update`` from a parameter; ``update`` has its whole shape."""
        raise NotImplementedError


class CapturableMuon(WholeMatrixMuon):
    """``torch.optim.Muon`` whose groups' learning rates are tensors, read on the device.

    The original takes their values to the host, which cannot be recorded in a CUDA graph.
    """

    def move(self, parameter: Tensor, update: Tensor, lr: Any, size: float) -> None:
        parameter.addcmul_(update.to(parameter.dtype), lr, value=-size)
