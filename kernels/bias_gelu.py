"""``bias_gelu``: ``y = GELU(x + bias)`` in one pass, exact.

With u = x + bias, y = u * Phi(u), where Phi and phi are the distribution function and the density
of the normal distribution. Forward reads x once and writes y once. Backward reads dy and x once and
writes dx once:

    dx = dy * (Phi(u) + u * phi(u)),   dbias = sum of dx over rows.

Each program of the backward keeps a partial sum of dbias in registers. The partial sums are added
up afterwards, without atomics, so two runs agree bit for bit.

Saved for backward: x and bias; u is recomputed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._autograd import saved_inputs, vjp
from ._op import empty_contiguous, has_kernel, register
from ._triton import tl, triton
from .launch import REGISTERS, cdiv, launch, num_sms

BLOCK_ROWS, BLOCK_COLS = 16, 128
PER_SM = 6
"""Resident programs of the backward per multiprocessor, limited by registers."""


def _ref(x: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(x + bias.to(x.dtype))


def _ref_backward(dy: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
    return vjp(_ref, (x, bias), dy)


@triton.jit
def _normal(u, EXACT: tl.constexpr):
    """The normal distribution's Phi(u) and density at u, in float32."""
    exponential = tl.exp2(u * u * -0.7213475204444817)  # exp(-u^2 / 2)
    if EXACT:
        cdf = 0.5 + 0.5 * tl.erf(u * 0.7071067811865476)
    else:
        # 1 - Phi(|u|) by Abramowitz and Stegun 7.1.26, halved: the error is at most 7.5e-8.
        t = 1.0 / (1.0 + 0.23164189 * tl.abs(u))
        tail = ((0.53070271 * t - 0.72657601) * t + 0.71070687) * t - 0.14224837
        tail = (tail * t + 0.12741479) * t * exponential
        cdf = tl.where(u >= 0, 1.0 - tail, tail)
    return cdf, 0.3989422804014327 * exponential


@triton.jit
def bias_gelu_forward_kernel(
    x_ptr, bias_ptr, y_ptr, rows, cols,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    # Neighbouring programs are neighbours in memory: columns first.
    column_blocks = tl.cdiv(cols, BLOCK_COLS)
    row = tl.program_id(0).to(tl.int64) // column_blocks * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    col = tl.program_id(0) % column_blocks * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    mask = (row < rows)[:, None] & (col < cols)[None, :]
    offsets = row[:, None] * cols + col[None, :]
    bias = tl.load(bias_ptr + col, mask=col < cols, other=0.0).to(tl.float32)
    u = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32) + bias[None, :]
    cdf, _ = _normal(u, EXACT)
    tl.store(y_ptr + offsets, (u * cdf).to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def bias_gelu_backward_kernel(
    dy_ptr, x_ptr, bias_ptr, dx_ptr, partial_ptr, rows, cols,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    column_blocks = tl.cdiv(cols, BLOCK_COLS)
    program, programs = tl.program_id(0) // column_blocks, tl.num_programs(0) // column_blocks
    col = tl.program_id(0) % column_blocks * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    bias = tl.load(bias_ptr + col, mask=col < cols, other=0.0).to(tl.float32)
    partial = tl.zeros([BLOCK_ROWS, BLOCK_COLS], tl.float32)
    for block in range(program, tl.cdiv(rows, BLOCK_ROWS), programs):
        row = (block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
        mask = (row < rows)[:, None] & (col < cols)[None, :]
        offsets = row[:, None] * cols + col[None, :]
        u = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32) + bias[None, :]
        dy = tl.load(dy_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        cdf, density = _normal(u, EXACT)
        dx = dy * (cdf + u * density)
        tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask=mask)
        partial += dx
    partial_ptr += program.to(tl.int64) * cols
    tl.store(partial_ptr + col, tl.sum(partial, axis=0), mask=col < cols)


def _forward(x: Tensor, bias: Tensor) -> Tensor:
    x = x.contiguous()
    y, cols = torch.empty_like(x), x.shape[-1]
    rows = x.numel() // cols
    grid = (cdiv(rows, BLOCK_ROWS) * cdiv(cols, BLOCK_COLS),)
    launch(
        bias_gelu_forward_kernel, grid, x, bias.contiguous(), y, rows, cols,
        BLOCK_ROWS=BLOCK_ROWS, BLOCK_COLS=BLOCK_COLS,
        EXACT=x.dtype == torch.float32,
    )  # fmt: skip
    return y


def _backward(dy: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    dy, x = dy.contiguous(), x.contiguous()
    dx, cols = torch.empty_like(x), x.shape[-1]
    rows = x.numel() // cols
    column_blocks = cdiv(cols, BLOCK_COLS)
    programs = max(1, min(cdiv(rows, BLOCK_ROWS), cdiv(PER_SM * num_sms(x.device), column_blocks)))
    partials = torch.empty(programs, cols, dtype=torch.float32, device=x.device)
    launch(
        bias_gelu_backward_kernel, (programs * column_blocks,),
        dy, x, bias.contiguous(), dx, partials, rows, cols,
        per_sm=PER_SM, maxnreg=REGISTERS // (128 * PER_SM) // 8 * 8,  # of 128 threads
        BLOCK_ROWS=BLOCK_ROWS, BLOCK_COLS=BLOCK_COLS,
        EXACT=x.dtype == torch.float32,
    )  # fmt: skip
    return dx, partials.sum(0).to(bias.dtype)


_backward_op = register(
    "bias_gelu_backward(Tensor dy, Tensor x, Tensor bias) -> (Tensor, Tensor)",
    ref=_ref_backward,
    triton=_backward,
    arguments={"dy": "* H", "x": "* H", "bias": "H"},
    fake=lambda dy, x, bias: (empty_contiguous(x), empty_contiguous(bias)),
    is_backward=True,
)
_op = register(
    "bias_gelu(Tensor x, Tensor bias) -> Tensor",
    ref=_ref,
    triton=_forward,
    arguments={"x": "* H", "bias": "H"},
    fake=lambda x, bias: empty_contiguous(x),
    backward=lambda ctx, dy: _backward_op(dy, *saved_inputs(ctx)),
)


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """Compute the exact ``GELU(x + bias)``.

    ``x`` float ``[..., H]``, ``bias`` float ``[H]``, each of any float dtype; returns ``x``'s shape
    and dtype. Arithmetic is float32 (float64 for float64 input, in PyTorch). Raises
    ``ValueError`` naming ``bias`` if the widths differ.

    Example::

        >>> fc1 = torch.nn.Linear(64, 256)
        >>> x = torch.randn(2, 5, 64)
        >>> y = bias_gelu(x @ fc1.weight.T, fc1.bias)  # [2, 5, 256], as F.gelu(fc1(x))
    """
    if bias.shape != x.shape[-1:]:
        raise ValueError(f"bias: shape {tuple(bias.shape)} is not [{x.shape[-1]}], the width of x")
    return (_op if has_kernel(x, x.dtype, bias.dtype) else _ref)(x, bias)
