"""``linear``: ``y = x W^T + b``, with both parameters' gradients in one pass on a CPU with AMX.

Forward and dx are matrix products of PyTorch's libraries, which are hard to beat. The weight's
gradient is a product over tokens, for which both matrices have to be repacked:

    dW = dy^T x,   db = sum of dy over tokens.

With AMX, PyTorch's library repacks them in memory first, which takes as long as the product, and
db is another pass over dy. ``linear_gradients`` repacks a block of tokens while it is in cache,
sums in float32, and returns both gradients in the parameters' dtype. Without AMX the product
itself takes longer, repacking hardly matters, and the library, a tenth faster, is used.

Saved for backward: x, and W in its dtype and in x's.

On a GPU, db would need an extra pass, so layers leave their bias to the next op if that op can sum
it (:func:`leaves_bias`). Float32 gradients of bfloat16 tensors come straight from the product's
float32 sums; autocast would round them to bfloat16 and convert them back in an extra pass.
:func:`cast_together` casts the weights of a whole step to bfloat16 at once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import _ext, _triton
from ._autograd import is_transformed
from ._op import autocast_dtype, device_kind, has_kernel, register


def _ref(dy: Tensor, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    dy, x = dy.flatten(0, -2), x.flatten(0, -2)
    return (dy.T @ x).to(dtype), dy.sum(0, dtype=dtype)


def _product(dy: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
    """dW on a GPU, where cuBLAS stores its float32 sums without rounding."""
    dy, x = dy.flatten(0, -2), x.flatten(0, -2)
    # Triton's interpreter runs on a CPU, which has no product of another output type.
    if x.dtype == dtype or dtype != torch.float32 or _triton.INTERPRET:
        return (dy.T @ x).to(dtype)
    return torch.mm(dy.T, x, out_dtype=dtype)


def _cuda(dy: Tensor, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return _product(dy, x, dtype), dy.flatten(0, -2).sum(0, dtype=dtype)


_op = register(
    "linear_gradients(Tensor dy, Tensor x, ScalarType dtype) -> (Tensor, Tensor)",
    ref=_ref,
    triton=_cuda,
    arguments={"dy": "* O", "x": "* I"},
    fake=lambda dy, x, dtype: (
        x.new_empty(dy.shape[-1], x.shape[-1], dtype=dtype), x.new_empty(dy.shape[-1], dtype=dtype)
    ),
    is_backward=True,
)  # fmt: skip


ONE_PASS = "cpu"
"""Device that sums the bias's gradient together with the weight's; a GPU needs another pass."""


def leaves_bias(x: Tensor) -> bool:
    """Whether layers on the device of ``x`` leave their bias to the next op.

    That op already has the values whose sum is the bias's gradient; a GPU would read them again.
    """
    return device_kind(x.device) != ONE_PASS and has_kernel(x)


_casts: dict[int, Tensor] = {}
"""Low-precision copies of weights, by the id of the weight."""


@contextlib.contextmanager
def cast_together(weights: Sequence[Tensor], dtype: torch.dtype) -> Iterator[None]:
    """Cast weights in one pass, for every :func:`linear` in the block.

    The block must contain forward and backward, but no update of the weights. Compiled modules cast
    their weights themselves. Cannot be nested.
    """
    copies = [torch.empty_like(weight, dtype=dtype) for weight in weights]
    if copies:
        with torch.no_grad():
            torch._foreach_copy_(copies, list(weights))
    _casts.update(zip(map(id, weights), copies, strict=True))
    try:
        yield
    finally:
        _casts.clear()


def weights_to_cast(model: nn.Module) -> list[Tensor]:
    """Return the weights of all linear layers for :func:`cast_together`.

    Autocast casts frozen weights; see :func:`_is_faster`.
    """
    layers = (part for part in model.modules() if type(part) is nn.Linear)
    return [p for layer in layers for p in layer.parameters() if p.requires_grad]


def _cast(weight: Tensor, dtype: torch.dtype) -> Tensor:
    if torch.compiler.is_compiling():
        return weight.to(dtype)
    found = _casts.get(id(weight))
    return weight.to(dtype) if found is None or found.dtype != dtype else found


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        cast = _cast(weight, x.dtype)
        ctx.save_for_backward(x, weight, cast)
        ctx.has_bias = bias is not None
        return F.linear(x, cast, None if bias is None else _cast(bias, x.dtype))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        (dy,) = grads
        x, weight, cast = ctx.saved_tensors
        again = torch.is_grad_enabled()  # for second derivatives
        if ctx.has_bias or again or device_kind(dy.device) == ONE_PASS:
            dweight, dbias = _op(dy, x, weight.dtype)
        else:
            dweight, dbias = _product(dy, x, weight.dtype), None  # a product without derivatives
        if again:  # `cast` has no history
            cast = weight.to(x.dtype)
        return dy @ cast, dweight, dbias if ctx.has_bias else None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear``, faster in training in bfloat16 on a GPU or a CPU with AMX.

    ``x`` float ``[..., I]``, ``weight`` ``[O, I]``, ``bias`` ``[O]`` or None, of one dtype or under
    autocast. Returns ``[..., O]`` of that dtype, or of autocast's. Raises what
    ``torch.nn.functional.linear`` raises.
    """
    return _Linear.apply(x, weight, bias) if _is_faster(x, weight) else F.linear(x, weight, bias)


def _is_faster(x: Tensor, weight: Tensor) -> bool:
    """Whether this module should compute the gradients of a layer on ``x``.

    Not for a frozen weight, for which PyTorch does not keep ``x``. On a CPU a float32 weight also
    has to be cast by :func:`cast_together`: otherwise this module casts it in every call, whereas
    autocast keeps its copy.
    """
    if not (weight.requires_grad and torch.is_grad_enabled()) or x.dtype != torch.bfloat16:
        return False
    kind, autocast = device_kind(x.device), autocast_dtype(x.device)
    if weight.dtype != x.dtype:
        is_cast = not torch.compiler.is_compiling() and id(weight) in _casts
        if autocast is None or not (kind == "cuda" or is_cast):
            return False
    is_fast = kind == "cuda" or (kind == "cpu" and _ext.ISA == "amx")
    is_bf16 = autocast in (None, x.dtype)
    return is_fast and is_bf16 and x.ndim > 1 and has_kernel(x) and not is_transformed()
