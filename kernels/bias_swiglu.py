"""``bias_swiglu``: ``y = SiLU(g + gate bias) * (v + value bias)`` in one pass.

g and v are the halves of the packed output of one linear layer, or the outputs of two. With u and w
for g and v with their biases,

    y = u * sigmoid(u) * w
    du = dy * w * (sigmoid(u) + u * sigmoid'(u)),   dw = dy * u * sigmoid(u)

Forward reads g and v once and writes y once; backward reads dy, g and v once and writes du and dw
once, in the layout of g and v. The gradients of the biases are sums over rows, of which each
program keeps partial ones in registers; they are added up without atomics.

Saved for backward: g, v and the biases.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._autograd import saved_inputs, vjp
from ._op import empty_contiguous, has_kernel, register
from ._triton import tl, triton
from .bias_gelu import _logistic
from .launch import cdiv, launch, num_sms

BLOCK_ROWS, BLOCK_COLS = 8, 128
PER_SM = 5
"""Programs of the backward that a multiprocessor holds, limited by their registers."""


def _ref(x: Tensor, bias: Tensor, value: Tensor | None = None) -> Tensor:
    _width(x, bias, value)
    gate, value = x.chunk(2, dim=-1) if value is None else (x, value)
    gate_bias, value_bias = bias.to(x.dtype).chunk(2)
    u = gate + gate_bias
    return u * torch.sigmoid(u) * (value + value_bias)  # F.silu's backward has no forward mode


def _ref_backward(
    dy: Tensor, x: Tensor, bias: Tensor, value: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    dx, dbias, *dvalue = vjp(_ref, (x, bias, value), dy)
    return dx, dbias, dvalue[0] if dvalue else x.new_empty(0)


def _width(x: Tensor, bias: Tensor, value: Tensor | None) -> int:
    """The width H of the output; raises ``ValueError`` naming an argument that does not fit."""
    if value is not None and (value.shape != x.shape or value.dtype != x.dtype):
        raise ValueError(
            f"value: {value.dtype} {tuple(value.shape)} is not {x.dtype} {tuple(x.shape)}, as x"
        )
    if x.ndim == 0:
        raise ValueError("x: shape () has no rows")
    both = x.shape[-1] * (1 if value is None else 2)
    if both % 2:
        raise ValueError(f"x: width {both} is odd and has no halves")
    if bias.shape != (both,):
        raise ValueError(f"bias: shape {tuple(bias.shape)} is not [{both}], for gates and values")
    return both // 2


@triton.jit
def _forward_kernel(
    x_ptr, value_ptr, bias_ptr, y_ptr, rows, cols,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
    col = tl.program_id(1) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    mask = (row < rows)[:, None] & (col < cols)[None, :]
    offsets = row[:, None] * cols + col[None, :]
    if PACKED:
        inputs = offsets + row[:, None] * cols
        value_ptr = x_ptr + cols
    else:
        inputs = offsets
    u = tl.load(x_ptr + inputs, mask=mask, other=0.0).to(tl.float32)
    w = tl.load(value_ptr + inputs, mask=mask, other=0.0).to(tl.float32)
    u += tl.load(bias_ptr + col, mask=col < cols, other=0.0).to(tl.float32)[None, :]
    w += tl.load(bias_ptr + cols + col, mask=col < cols, other=0.0).to(tl.float32)[None, :]
    sigmoid, _ = _logistic(u, 1.0, 0.0)
    tl.store(y_ptr + offsets, (u * sigmoid * w).to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _backward_kernel(
    dy_ptr, x_ptr, value_ptr, bias_ptr, dx_ptr, dvalue_ptr, partial_ptr, rows, cols,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    col = tl.program_id(1) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    gate_bias = tl.load(bias_ptr + col, mask=col < cols, other=0.0).to(tl.float32)
    value_bias = tl.load(bias_ptr + cols + col, mask=col < cols, other=0.0).to(tl.float32)
    gate_partial = tl.zeros([BLOCK_ROWS, BLOCK_COLS], tl.float32)
    value_partial = tl.zeros([BLOCK_ROWS, BLOCK_COLS], tl.float32)
    if PACKED:
        value_ptr = x_ptr + cols
        dvalue_ptr = dx_ptr + cols
    for block in range(tl.program_id(0), tl.cdiv(rows, BLOCK_ROWS), tl.num_programs(0)):
        row = (block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
        mask = (row < rows)[:, None] & (col < cols)[None, :]
        offsets = row[:, None] * cols + col[None, :]
        dy = tl.load(dy_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        if PACKED:
            offsets += row[:, None] * cols
        u = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32) + gate_bias[None, :]
        w = tl.load(value_ptr + offsets, mask=mask, other=0.0).to(tl.float32) + value_bias[None, :]
        sigmoid, slope = _logistic(u, 1.0, 0.0)
        du = dy * w * (sigmoid + u * slope)
        dw = dy * u * sigmoid
        tl.store(dx_ptr + offsets, du.to(dx_ptr.dtype.element_ty), mask=mask)
        tl.store(dvalue_ptr + offsets, dw.to(dx_ptr.dtype.element_ty), mask=mask)
        gate_partial += du
        value_partial += dw
    partial_ptr += tl.program_id(0).to(tl.int64) * 2 * cols
    tl.store(partial_ptr + col, tl.sum(gate_partial, axis=0), mask=col < cols)
    tl.store(partial_ptr + cols + col, tl.sum(value_partial, axis=0), mask=col < cols)


def _forward(x: Tensor, bias: Tensor, value: Tensor | None = None) -> Tensor:
    cols = _width(x, bias, value)
    x, value = x.contiguous(), None if value is None else value.contiguous()
    y = x.new_empty(*x.shape[:-1], cols)
    rows = y.numel() // cols
    grid = (cdiv(rows, BLOCK_ROWS), cdiv(cols, BLOCK_COLS))
    launch(
        _forward_kernel, grid, x, value, bias.contiguous(), y, rows, cols,
        BLOCK_ROWS=BLOCK_ROWS, BLOCK_COLS=BLOCK_COLS, PACKED=value is None,
    )  # fmt: skip
    return y


def _backward(
    dy: Tensor, x: Tensor, bias: Tensor, value: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    cols = _width(x, bias, value)
    if dy.shape[-1] != cols:
        raise ValueError(f"dy: width {dy.shape[-1]} is not {cols}")
    dy, x, value = dy.contiguous(), x.contiguous(), None if value is None else value.contiguous()
    dx, dvalue = torch.empty_like(x), None if value is None else torch.empty_like(value)
    rows = dy.numel() // cols
    column_blocks = cdiv(cols, BLOCK_COLS)
    programs = max(1, min(cdiv(rows, BLOCK_ROWS), cdiv(PER_SM * num_sms(x.device), column_blocks)))
    partials = torch.empty(programs, 2 * cols, dtype=torch.float32, device=x.device)
    launch(
        _backward_kernel, (programs, column_blocks),
        dy, x, value, bias.contiguous(), dx, dvalue, partials, rows, cols,
        per_sm=PER_SM,
        BLOCK_ROWS=BLOCK_ROWS, BLOCK_COLS=BLOCK_COLS, PACKED=value is None,
    )  # fmt: skip
    return dx, partials.sum(0).to(bias.dtype), x.new_empty(0) if dvalue is None else dvalue


_backward_op = register(
    "bias_swiglu_backward(Tensor dy, Tensor x, Tensor bias, Tensor? value=None)"
    " -> (Tensor, Tensor, Tensor)",
    ref=_ref_backward,
    triton=_backward,
    arguments={"dy": "* H", "x": "* W", "bias": "B", "value": "* W"},
    fake=lambda dy, x, bias, value=None: (
        empty_contiguous(x),
        empty_contiguous(bias),
        x.new_empty(0) if value is None else empty_contiguous(value),
    ),
    is_backward=True,
)


def _differentiate(ctx: Any, dy: Tensor) -> tuple[Tensor, ...]:
    x, bias, value = saved_inputs(ctx)
    grads = _backward_op(dy, x, bias, value)
    return grads[:2] if value is None else grads


_op = register(
    "bias_swiglu(Tensor x, Tensor bias, Tensor? value=None) -> Tensor",
    ref=_ref,
    triton=_forward,
    arguments={"x": "* W", "bias": "B", "value": "* W"},
    fake=lambda x, bias, value=None: x.new_empty(*x.shape[:-1], bias.shape[0] // 2),
    backward=_differentiate,
)


def bias_swiglu(x: Tensor, bias: Tensor, value: Tensor | None = None) -> Tensor:
    """``SiLU(gate + bias[:H]) * (value + bias[H:])``, the middle of a gated MLP.

    ``x`` float: the gates ``[..., H]`` if there is a ``value`` of the same shape and dtype, else
    gates and values ``[..., 2 * H]``, gates first. ``bias`` float ``[2 * H]``, of any float dtype.
    Returns ``[..., H]`` in ``x``'s dtype. Arithmetic is float32 (float64 for float64 input, in
    PyTorch). Raises ``ValueError`` naming an argument that does not fit.

    Example::

        >>> w12 = torch.nn.Linear(64, 2 * 170)
        >>> x = torch.randn(2, 5, 64)
        >>> y = bias_swiglu(x @ w12.weight.T, w12.bias)  # [2, 5, 170]
    """
    _width(x, bias, value)
    return (_op if has_kernel(x, x.dtype, bias.dtype) else _ref)(x, bias, value)
