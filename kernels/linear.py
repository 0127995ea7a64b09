"""``linear``: ``y = x W^T + b``, whose weight and bias gradients are taken in one pass on AMX.

Forward and dx are the matrix products of PyTorch's libraries, which nothing here beats. The
weight's gradient is a product over tokens of two matrices that lie the wrong way round for it:

    dW = dy^T x,   db = sum of dy over rows.

With AMX tiles the library turns them around in memory first, which takes as long as the product,
and db is another pass over dy; ``linear_gradients`` does all of it while a block of tokens is in
cache, sums in float32, and returns the gradients in the parameters' own dtype. Without tiles
products are slower, turning is not, and the library is ahead by a tenth: there it is used.

Saved for backward: x and W, in x's dtype.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _ext
from ._op import fused, register


def _ref(dy: Tensor, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    dy, x = dy.flatten(0, -2), x.flatten(0, -2)
    return (dy.T @ x).to(dtype), dy.sum(0, dtype=dtype)


_op = register(
    "linear_gradients(Tensor dy, Tensor x, ScalarType dtype) -> (Tensor, Tensor)",
    ref=_ref,
    triton=_ref,
    fake=lambda dy, x, dtype: (
        x.new_empty(dy.shape[-1], x.shape[-1], dtype=dtype), x.new_empty(dy.shape[-1], dtype=dtype)
    ),
)  # fmt: skip


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        cast = weight.to(x.dtype)
        ctx.save_for_backward(x, cast)
        ctx.dtype, ctx.has_bias = weight.dtype, bias is not None
        return F.linear(x, cast, None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        (dy,) = grads
        x, weight = ctx.saved_tensors
        dweight, dbias = _op(dy, x, ctx.dtype)
        return dy @ weight, dweight, dbias if ctx.has_bias else None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear``, for training in bfloat16 on a CPU with AMX.

    ``x`` float ``[..., I]``, ``weight`` ``[O, I]``, ``bias`` ``[O]`` or None, of one dtype or under
    autocast; returns ``[..., O]`` of that dtype, or of autocast's.
    """
    on_tiles = x.device.type == "cpu" and _ext.ISA == "amx"
    if on_tiles and x.dtype == torch.bfloat16 and fused(x):
        return _Linear.apply(x, weight, bias)
    return F.linear(x, weight, bias)
