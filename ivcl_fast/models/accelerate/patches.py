"""Patch embeddings: a convolution whose windows do not overlap is a linear layer of patches.

PyTorch's library computes it as any other convolution. On a CPU in bfloat16 the matrix product of
the patches is faster: for windows of 8 to 32 pixels, 1.03 to 7 times in inference and 1.2 to 27
times with the weight's gradient (one thread of an Intel Xeon with AMX, and with its library held to
AVX-512; widths 128 to 768, 1 and 8 images). In float32, and for smaller windows as between the
stages of hierarchical models, it is not always the faster one, and the convolution runs.

Nothing of this is a kernel of ours, so derivatives of every kind are PyTorch's own.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ivcl_fast.models.accelerate.guard import ORIGIN
from ivcl_fast.models.layers import PLAIN, compute_dtype, is_patched

LEAST_WINDOW = 8
"""Pixels of a side."""


def embeds_patches(part: nn.Module) -> bool:
    """Whether a module is a convolution on a CPU whose windows touch, but do not overlap."""
    if not isinstance(part, nn.Conv2d | nn.Conv3d):
        return False
    none = (0,) * len(part.kernel_size)
    return (
        part.stride == part.kernel_size
        and part.padding in (none, "valid")
        and set(part.dilation) == {1}
        and part.groups == 1
        and min(part.kernel_size[-2:]) >= LEAST_WINDOW
        and part.weight.device.type == "cpu"
        and type(part.weight) in PLAIN
    )


def of_patches(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution of ``x`` ``[B, C, *size]`` by ``weight`` ``[D, C, *window]``, its windows
    side by side: ``[B, D, *grid]``. What they leave at the ends is not read."""
    for axis, side in enumerate(weight.shape[2:], start=2):
        x = x.unfold(axis, side, side)
    axes = weight.ndim - 2
    patches = x.movedim(1, 1 + axes).flatten(1 + axes)  # [B, *grid, C * window]
    return F.linear(patches, weight.flatten(1), bias).movedim(-1, 1).contiguous()


class _PatchEmbedding:
    """Runs :func:`of_patches` where it is the faster one, else the convolution.

    It also runs the convolution if the weight is a parametrisation's, which each reading computes.
    """

    def forward(self: Any, input: Tensor) -> Tensor:
        weight = self._parameters.get("weight")
        is_faster = (
            type(input) in PLAIN
            and type(weight) in PLAIN
            and input.device.type == "cpu"
            and input.ndim == weight.ndim
            and compute_dtype(input) == torch.bfloat16
            and not is_patched(nn.Conv2d if weight.ndim == 4 else nn.Conv3d)
            and "_conv_forward" not in self.__dict__
            and embeds_patches(self)
            and all(n >= side for n, side in zip(input.shape[2:], self.kernel_size, strict=True))
        )
        if not is_faster:
            return super().forward(input)  # type: ignore[misc]
        return of_patches(input, weight, self.bias)

    def __prepare_scriptable__(self: Any) -> nn.Module:  # TorchScript takes the convolution
        plain = copy.copy(self)
        plain.__class__ = CONVOLUTIONS[type(self)]
        plain.__dict__.pop(ORIGIN, None)
        return plain


class PatchConv2d(_PatchEmbedding, nn.Conv2d):
    """An ``nn.Conv2d`` of patches."""


class PatchConv3d(_PatchEmbedding, nn.Conv3d):
    """An ``nn.Conv3d`` of patches of several frames."""


PATCHES: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: PatchConv2d, nn.Conv3d: PatchConv3d}
"""The class that an embedding of patches gets, by its own."""
CONVOLUTIONS = {new: old for old, new in PATCHES.items()}
