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

from functools import partial

import torch
from torch import Tensor

from ._op import empty_contiguous, register
from .add_layer_norm import _ref as add_norm_ref
from .add_layer_norm import _ref_norm as norm_ref
from .add_layer_norm import (
    differentiate,
    differentiate_norm,
    launch_forward,
    norm_has_kernel,
    register_backward,
    setup_context,
)


def _ref(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return add_norm_ref(x, residual, weight, None, eps)


def _ref_norm(x: Tensor, weight: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    return norm_ref(x, weight, None, eps, dtype)


_backward_op = register_backward("add_rms_norm_backward", sums=1)
_op = register(
    "add_rms_norm(Tensor x, Tensor residual, Tensor weight, float eps) -> (Tensor, Tensor)",
    ref=_ref,
    triton=lambda x, residual, weight, eps: launch_forward(
        x, None, residual, weight, None, eps, x.dtype
    ),
    arguments={"x": "* D", "residual": "* D", "weight": "D"},
    fake=lambda x, residual, *_: (empty_contiguous(residual), empty_contiguous(x)),
    setup_context=setup_context,
    backward=partial(differentiate, _backward_op),
)
_norm_op = register(
    "rms_norm(Tensor x, Tensor weight, float eps, ScalarType dtype) -> Tensor",
    ref=_ref_norm,
    triton=lambda x, weight, eps, dtype: launch_forward(x, None, None, weight, None, eps, dtype)[1],
    arguments={"x": "* D", "weight": "D"},
    fake=lambda x, weight, eps, dtype: empty_contiguous(x, dtype),
    backward=partial(differentiate_norm, _backward_op),
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
