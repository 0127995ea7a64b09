"""``linear``: ``y = x W^T + b``, with both parameters' gradients in one pass on a CPU with AMX.

Forward and dx are matrix products of PyTorch's libraries, which are hard to beat. The weight's
gradient is a product over tokens, for which both matrices have to be repacked:

    dW = dy^T x,   db = sum of dy over tokens.

With AMX, PyTorch's library repacks them in memory first, which takes as long as the product, and
db is another pass over dy. ``linear_gradients`` repacks a block of tokens while it is in cache,
sums in float32, and returns both gradients in the parameters' own dtype. Without AMX the product
itself takes longer, repacking hardly matters, and the library, a tenth faster, is used.

Saved for backward: x and W, in its own dtype and in x's.

Only the gradients of the parameters are this project's C++ code, with the same bits for any number
of threads. The output and dx come from PyTorch's libraries, which do not promise that.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _ext
from ._autograd import is_transformed
from ._op import has_kernel, register


def _ref(dy: Tensor, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    dy, x = dy.flatten(0, -2), x.flatten(0, -2)
    return (dy.T @ x).to(dtype), dy.sum(0, dtype=dtype)


_op = register(
    "linear_gradients(Tensor dy, Tensor x, ScalarType dtype) -> (Tensor, Tensor)",
    ref=_ref,
    triton=_ref,
    arguments={"dy": "* O", "x": "* I"},
    fake=lambda dy, x, dtype: (
        x.new_empty(dy.shape[-1], x.shape[-1], dtype=dtype), x.new_empty(dy.shape[-1], dtype=dtype)
    ),
    is_backward=True,
)  # fmt: skip


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        cast = weight.to(x.dtype)
        ctx.save_for_backward(x, weight, cast)
        ctx.has_bias = bias is not None
        return F.linear(x, cast, None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        (dy,) = grads
        x, weight, cast = ctx.saved_tensors
        dweight, dbias = _op(dy, x, weight.dtype)
        if torch.is_grad_enabled():  # for a second derivative: `cast` has no history
            cast = weight.to(x.dtype)
        return dy @ cast, dweight, dbias if ctx.has_bias else None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear``, faster in training in bfloat16 on a CPU with AMX.

    ``x`` float ``[..., I]``, ``weight`` ``[O, I]``, ``bias`` ``[O]`` or None, of one dtype or under
    autocast. Returns ``[..., O]`` of that dtype, or of autocast's. Raises what
    ``torch.nn.functional.linear`` raises.
    """
    has_amx = x.device.type == "cpu" and _ext.ISA == "amx"
    if has_amx and x.dtype == torch.bfloat16 and has_kernel(x) and not is_transformed():
        return _Linear.apply(x, weight, bias)
    return F.linear(x, weight, bias)
