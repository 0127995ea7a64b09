"""``add_rms_norm``: ``sum = x + residual``, ``normed = RMSNorm(sum) * weight``.

RMSNorm (Zhang and Sennrich, https://arxiv.org/abs/1910.07467) divides a row by its root mean square
instead of its deviation from its mean: LayerNorm without centring, and without a bias. With
z = sum * rstd, rstd = (mean(sum * sum) + eps) ** -0.5, g = dnormed * weight and means over the row,

    d = dsum + rstd * (g - z * mean(g * z))

is the gradient of both x and residual, and dweight the sum of dnormed * z over rows. The kernels
are those of ``add_layer_norm.py``, which says how they read memory, round and add up.

``rms_norm`` is the same without a residual.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._autograd import vjp
from ._op import empty_contiguous, register
from .add_layer_norm import empty_grads, launch_backward, launch_forward, norm_has_kernel


def _ref(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total = (x + residual).to(residual.dtype)
    return total, _ref_norm(total, weight, eps, x.dtype)


def _ref_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    wide = torch.promote_types(x.dtype, weight.dtype)
    return F.rms_norm(x.to(wide), x.shape[-1:], weight.to(wide), eps).to(dtype)


def _ref_backward(
    dsum: Tensor | None, dnormed: Tensor, total: Tensor, weight: Tensor, eps: float,
    x_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    d, dweight, _, _ = vjp(_ref_norm, (total, weight, eps, dnormed.dtype), dnormed)
    d = d if dsum is None else d + dsum
    dx = d.new_empty(0, dtype=x_dtype) if x_dtype == d.dtype else d.to(x_dtype)
    return d, dx, dweight[None]


def _forward(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total, normed = empty_contiguous(residual), empty_contiguous(x)
    launch_forward(x, None, residual, weight, None, eps, total, normed, centred=False)
    return total, normed


def _forward_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    normed = empty_contiguous(x, dtype)
    launch_forward(x, None, None, weight, None, eps, None, normed, centred=False)
    return normed


def _backward(
    dsum: Tensor | None, dnormed: Tensor, total: Tensor, weight: Tensor, eps: float,
    x_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return launch_backward(dsum, dnormed, total, weight, eps, x_dtype, sums=1)


# Returns the gradient in the residual's dtype; the same in x's dtype, or an empty tensor where the
# dtypes are equal; and dweight, [1, D].
_backward_op = register(
    "add_rms_norm_backward(Tensor? dsum, Tensor dnormed, Tensor sum, Tensor weight, float eps,"
    " ScalarType x_dtype) -> (Tensor, Tensor, Tensor)",
    ref=_ref_backward,
    triton=_backward,
    arguments={"dsum": "* D", "dnormed": "* D", "sum": "* D", "weight": "D"},
    fake=lambda *args: empty_grads(*args, sums=1),
    is_backward=True,
)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, _, weight, eps = inputs
    ctx.save_for_backward(output[0], weight)
    ctx.eps, ctx.x_dtype = eps, x.dtype
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, dsum: Tensor | None, dnormed: Tensor | None) -> tuple[Tensor | None, ...]:
    if dnormed is None:  # only the sum was used
        return None if dsum is None else dsum.to(ctx.x_dtype), dsum, None, None
    total, weight = ctx.saved_tensors
    d, dx, (dweight,) = _backward_op(dsum, dnormed, total, weight, ctx.eps, ctx.x_dtype)
    return d if ctx.x_dtype == d.dtype else dx, d, dweight, None


def _setup_norm_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, ctx.eps, _ = inputs
    ctx.save_for_backward(x, weight)


def _autograd_norm(ctx: Any, dnormed: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    dx, _, (dweight,) = _backward_op(None, dnormed, x, weight, ctx.eps, x.dtype)
    return dx, dweight, None, None


_op = register(
    "add_rms_norm(Tensor x, Tensor residual, Tensor weight, float eps) -> (Tensor, Tensor)",
    ref=_ref,
    triton=_forward,
    arguments={"x": "* D", "residual": "* D", "weight": "D"},
    fake=lambda x, residual, weight, eps: (empty_contiguous(residual), empty_contiguous(x)),
    setup_context=_setup_context,
    backward=_autograd,
)
_norm_op = register(
    "rms_norm(Tensor x, Tensor weight, float eps, ScalarType dtype) -> Tensor",
    ref=_ref_norm,
    triton=_forward_norm,
    arguments={"x": "* D", "weight": "D"},
    fake=lambda x, weight, eps, dtype: empty_contiguous(x, dtype),
    setup_context=_setup_norm_context,
    backward=_autograd_norm,
)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6
) -> tuple[Tensor, Tensor]:
    """``sum = x + residual`` in ``residual``'s dtype, and ``RMSNorm(sum)`` in ``x``'s dtype.

    ``x`` and ``residual`` float ``[..., D]``, ``weight`` float ``[D]``, each of any float dtype;
    ``eps`` is added to the mean square. Arithmetic and statistics are float32. Rows wider than
    8,192 run in PyTorch. Raises ``ValueError`` naming an argument whose shape is wrong.

    Example::

        >>> norm = torch.nn.RMSNorm(64, eps=1e-6)
        >>> branch, x = torch.randn(2, 2, 5, 64)
        >>> x, normed = add_rms_norm(branch, x, norm.weight, norm.eps)
    """
    if residual.shape != x.shape:
        raise ValueError(
            f"residual: shape {tuple(residual.shape)} is not {tuple(x.shape)}, the shape of x"
        )
    run = _op if norm_has_kernel(x, residual.dtype, weight=weight) else _ref
    return run(x, residual, weight, eps)


def rms_norm(
    x: Tensor, weight: Tensor, eps: float = 1e-6, dtype: torch.dtype | None = None
) -> Tensor:
    """RMSNorm over the last dimension: :func:`add_rms_norm` without the addition.

    ``x`` float ``[..., D]``, ``weight`` float ``[D]``. Returns ``x``'s shape in ``dtype``, by
    default ``x``'s own. Raises ``ValueError`` naming an argument whose shape is wrong.
    """
    dtype = dtype or x.dtype
    run = _norm_op if norm_has_kernel(x, dtype, weight=weight) else _ref_norm
    return run(x, weight, eps, dtype)
