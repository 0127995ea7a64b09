"""Adapter of patch embeddings: a convolution whose windows do not overlap is a linear layer.

PyTorch's library computes it as any other convolution. On a CPU in bfloat16 the matrix product of
the patches is faster: for windows of 8 to 32 pixels, 1.03 to 7 times in inference and 1.2 to 27
times with the weight's gradient (one thread of an Intel Xeon with AMX, and with its library held to
AVX-512; widths 128 to 768, 1 and 8 images). In float32, and for smaller windows as between the
stages of hierarchical models, it is not always faster, and the convolution runs.

Nothing of this is a kernel of ours, so derivatives of every kind are PyTorch's own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ivcl_fast.models.accelerate.adapter import ComparedAdapter
from ivcl_fast.models.layers import PLAIN, compute_dtype

LEAST_WINDOW = 8
"""Pixels of a side."""


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
        # A parametrisation's weight is computed at each reading.
        weight = self._parameters.get("weight")
        if reason := super().own_reason():
            return reason
        if not embeds_patches(self):
            return "its windows are small, overlap or have gaps between them"
        if type(weight) not in PLAIN or tuple(weight.shape[2:]) != self.kernel_size:
            return "its weight is of another kind, or not of its kernel's size"
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
    """Whether the windows of a convolution are large, touch and do not overlap."""
    return (
        conv.stride == conv.kernel_size
        and conv.padding in ((0,) * len(conv.kernel_size), "valid")
        and set(conv.dilation) == {1}
        and conv.groups == 1
        and min(conv.kernel_size[-2:]) >= LEAST_WINDOW
    )


def of_patches(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution of ``x`` ``[B, C, *size]`` by ``weight`` ``[D, C, *window]``, its windows
    side by side: ``[B, D, *grid]``. Pixels behind the last whole window are not read."""
    for axis, side in enumerate(weight.shape[2:], start=2):
        x = x.unfold(axis, side, side)
    axes = weight.ndim - 2
    patches = x.movedim(1, 1 + axes).flatten(1 + axes)  # [B, *grid, C * window]
    return F.linear(patches, weight.flatten(1), bias).movedim(-1, 1).contiguous()
