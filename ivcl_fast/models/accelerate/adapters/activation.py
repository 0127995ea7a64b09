"""Which activation a module computes, found by its values and not by its name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ivcl_fast.models.accelerate.draws import OwnDraws

GELUS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": F.gelu,
    "tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick": lambda x: x * torch.sigmoid(1.702 * x),
}
"""What ``approximate`` of :func:`ivcl_fast.kernels.bias_gelu` stands for."""
TOLERANCE = 1e-5
"""Some compute in float32, with constants of few digits; two kinds differ by 4e-4 somewhere."""


def gelu_kind(part: nn.Module | None) -> str | None:
    """The kind of GELU that a module computes, or None."""
    return next((kind for kind, function in GELUS.items() if computes(part, function)), None)


def computes(part: nn.Module | None, function: Callable[[Tensor], Tensor]) -> bool:
    """Whether a module without parameters and children computes an activation function.

    Its forward pass runs on a copy, without hooks, in float64 on the CPU.
    """
    if part is None or part._parameters or part._buffers or part._modules:
        return False
    x = torch.linspace(-6, 6, 49, dtype=torch.float64, device="cpu")
    twin: Any = copy.copy(part)
    try:
        with torch.no_grad(), OwnDraws(x.device):
            y = type(part).forward(twin, x.clone())
            expected = function(x)
            is_like = isinstance(y, Tensor) and y.shape == x.shape and y.dtype == x.dtype
            return is_like and bool((y - expected).abs().max() <= TOLERANCE)
    except Exception:  # it takes something else than a tensor of any shape
        return False
