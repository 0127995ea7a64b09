"""Adapter of patch embeddings: a convolution whose windows do not overlap is a linear layer.

On a CPU in bfloat16, the matrix product of the patches is faster than PyTorch's convolution: for
windows of 8 to 32 pixels, by 1.03 to 7 times in inference and 1.2 to 27 times with the weight
gradient (one thread of an Intel Xeon with AMX, and restricted to AVX-512; widths 128 to 768, 1 and
8 images). In float32, and for the smaller windows between stages of hierarchical models, it is not
always faster, and the convolution runs.

This uses only PyTorch operations, so all derivatives are supported.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ivcl_fast.models.accelerate.adapter import ComparedAdapter
from ivcl_fast.models.layers import PLAIN, compute_dtype

LEAST_WINDOW = 8
"""Minimum window side in pixels."""


class PatchConvolution(ComparedAdapter):
    """``nn.Conv2d`` or ``nn.Conv3d`` of patches."""

    def fused_input(self: Any, input: Any) -> Tensor | None:
        weight = self._parameters.get("weight")
        if not isinstance(input, Tensor) or weight is None or input.ndim != weight.ndim:
            return None
        fits = input.shape[1] == weight.shape[1] and all(
            n >= side for n, side in zip(input.shape[2:], weight.shape[2:], strict=True)
        )
        return input if fits else None

    def own_reason(self: Any) -> str | None:
        # A parametrised weight is recomputed at each access.
        weight = self._parameters.get("weight")
        if reason := super().own_reason():
            return reason
        if not embeds_patches(self):
            return "its windows are small, overlap or have gaps between them"
        if type(weight) not in PLAIN or tuple(weight.shape[2:]) != self.kernel_size:
            return "its weight is not a plain tensor of its kernel's size"
        if weight.device.type != "cpu":
            return "the convolution is as fast on this device"
        return None

    def speed_reason(self, x: Tensor) -> str | None:
        is_faster = x.device.type == "cpu" and compute_dtype(x) == torch.bfloat16
        return None if is_faster else "the convolution is as fast in this dtype"

    def settings(self: Any) -> tuple:
        return *self.weight.shape, self.weight.dtype, self.bias is not None

    def fused_output(self: Any, x: Tensor) -> Tensor:
        return of_patches(x, self.weight, self.bias)


def embeds_patches(conv: Any) -> bool:
    """Return whether a convolution's windows are large and adjacent, without overlap or gaps."""
    return (
        conv.stride == conv.kernel_size
        and conv.padding in ((0,) * len(conv.kernel_size), "valid")
        and set(conv.dilation) == {1}
        and conv.groups == 1
        and min(conv.kernel_size[-2:]) >= LEAST_WINDOW
    )


def of_patches(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve ``x`` ``[B, C, *size]`` with ``weight`` ``[D, C, *window]`` on adjacent windows:
    ``[B, D, *grid]``. Pixels after the last whole window are ignored."""
    for axis, side in enumerate(weight.shape[2:], start=2):
        x = x.unfold(axis, side, side)
    axes = weight.ndim - 2
    patches = x.movedim(1, 1 + axes).flatten(1 + axes)  # [B, *grid, C * window]
    return F.linear(patches, weight.flatten(1), bias).movedim(-1, 1).contiguous()
