"""``add_layer_norm``: ``sum = x + residual``, ``normed = LayerNorm(sum) * weight + bias``.

One pass over memory each way. A program holds whole rows in registers, so it computes mean and
variance in float32, in two passes (the variance of centred values), without reading memory twice.
The statistics are those of the sum *as it is stored*, rounded to the residual's dtype. Backward,
which only sees the stored sum, is therefore the exact gradient of what forward computed. With
z = (sum - mean) * rstd, g = dnormed * weight and means over the row,

    d = dsum + rstd * (g - mean(g) - z * mean(g * z))

is the gradient of both x and residual; dweight = sum of dnormed * z and dbias = sum of dnormed over
rows. Each program of the backward keeps partial sums of these two in registers. The partial sums
are added up afterwards, without atomics, so two runs agree bit for bit.

Saved for backward: sum, weight and eps; the statistics are recomputed.

The linear layer that made ``x`` may leave its bias, ``x_bias``, to be added here. The gradient of
this bias is the sum of d over rows: a third partial sum, of values that are in registers.

``layer_norm`` is the same without a residual: the first norm of a stack has none to add.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ._autograd import saved_inputs, vjp
from ._op import empty_contiguous, has_kernel, register
from ._triton import tl, triton
from .launch import REGISTERS, cdiv, launch, next_power_of_2, num_sms

MAX_WIDTH = 8192
"""Largest width: rows must fit in registers, and wider ones run in PyTorch."""
RESIDENT_WARPS = 20
"""Warps of the backward per multiprocessor, which limit the registers of a thread."""


def _ref(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    total = (x + residual).to(residual.dtype)
    return total, _ref_norm(total, weight, bias, eps, x.dtype)


def _ref_biased(
    x: Tensor, x_bias: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    return _ref(x + x_bias.to(x.dtype), residual, weight, bias, eps)


def _ref_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    wide = torch.promote_types(x.dtype, weight.dtype)
    x, weight = x.to(wide), weight.to(wide)
    return F.layer_norm(x, x.shape[-1:], weight, bias.to(wide), eps).to(dtype)


def _ref_backward(
    sums: int, dsum: Tensor | None, dnormed: Tensor, total: Tensor, weight: Tensor, eps: float,
    x_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    # A bias affects no gradient, so any tensor of its shape will do.
    bias = torch.zeros_like(weight)
    d, *parameters = vjp(_ref_norm, (total, weight, bias, eps, dnormed.dtype), dnormed)
    d = d if dsum is None else d + dsum
    dx = d.new_empty(0, dtype=x_dtype) if x_dtype == d.dtype else d.to(x_dtype)
    if sums == 3:
        parameters.append(_sum_of_rows(d, weight.dtype))
    return d, dx, torch.stack(parameters)


def _sum_of_rows(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.reshape(-1, x.shape[-1]).sum(0, dtype=dtype)


@triton.jit
def _statistics(total, mask, cols, eps):
    """Centred rows (zero outside ``mask``), and 1 / their standard deviation."""
    # "/" may be off by two ulps, so that a centred constant row would not be zero.
    mean = tl.div_rn(tl.sum(total, axis=1), cols * 1.0)
    total = tl.where(mask, total - mean[:, None], 0.0)
    mean_square = tl.sum(total * total, axis=1) / cols
    return total, (1.0 / tl.sqrt(mean_square + eps))[:, None]


@triton.jit
def add_layer_norm_forward_kernel(
    x_ptr, x_bias_ptr, residual_ptr, weight_ptr, bias_ptr, sum_ptr, normed_ptr, rows, cols, eps,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
    col = tl.arange(0, BLOCK_COLS)
    mask = (row < rows)[:, None] & (col < cols)[None, :]
    offsets = row[:, None] * cols + col[None, :]
    total = tl.load(x_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    if x_bias_ptr is not None:
        x_bias = tl.load(x_bias_ptr + col, mask=col < cols, other=0.0).to(tl.float32)
        total += x_bias[None, :]
    if residual_ptr is not None:
        total += tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        stored = total.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + offsets, stored, mask=mask)
        total = stored.to(tl.float32)
    centred, rstd = _statistics(total, mask, cols, eps)
    weight = tl.load(weight_ptr + col, mask=col < cols, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + col, mask=col < cols, other=0.0).to(tl.float32)
    normed = centred * rstd * weight[None, :] + bias[None, :]
    tl.store(normed_ptr + offsets, normed.to(normed_ptr.dtype.element_ty), mask=mask)


@triton.jit
def add_layer_norm_backward_kernel(
    dsum_ptr, dnormed_ptr, sum_ptr, weight_ptr, d_ptr, dx_ptr, partial_ptr, rows, cols, eps,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr, WITH_X_BIAS: tl.constexpr,
):  # fmt: skip
    col = tl.arange(0, BLOCK_COLS)
    weight = tl.load(weight_ptr + col, mask=col < cols, other=0.0).to(tl.float32)
    dweight = tl.zeros([BLOCK_ROWS, BLOCK_COLS], tl.float32)
    dbias = tl.zeros([BLOCK_ROWS, BLOCK_COLS], tl.float32)
    dx_bias = tl.zeros([BLOCK_ROWS, BLOCK_COLS], tl.float32)
    for block in range(tl.program_id(0), tl.cdiv(rows, BLOCK_ROWS), tl.num_programs(0)):
        row = (block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
        mask = (row < rows)[:, None] & (col < cols)[None, :]
        offsets = row[:, None] * cols + col[None, :]
        total = tl.load(sum_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        dnormed = tl.load(dnormed_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
        if dsum_ptr is not None:  # this load overlaps with the reductions
            dsum = tl.load(dsum_ptr + offsets, mask=mask, other=0.0)
        centred, rstd = _statistics(total, mask, cols, eps)
        # Rows beyond the last are zero, so without an epsilon it would be infinite.
        rstd = tl.where((row < rows)[:, None], rstd, 0.0)
        z = centred * rstd
        dweight += dnormed * z
        g = dnormed * weight[None, :]
        gz_mean = (tl.sum(g * z, axis=1) / cols)[:, None]
        dbias += dnormed
        d = rstd * (g - (tl.sum(g, axis=1) / cols)[:, None] - z * gz_mean)
        if dsum_ptr is not None:
            d += dsum.to(tl.float32)
        if WITH_X_BIAS:
            dx_bias += d
        tl.store(d_ptr + offsets, d.to(d_ptr.dtype.element_ty), mask=mask)
        if dx_ptr is not None:
            tl.store(dx_ptr + offsets, d.to(dx_ptr.dtype.element_ty), mask=mask)
    offsets = tl.program_id(0).to(tl.int64) * cols + col
    tl.store(partial_ptr + offsets, tl.sum(dweight, axis=0), mask=col < cols)
    partial_ptr += tl.num_programs(0).to(tl.int64) * cols
    tl.store(partial_ptr + offsets, tl.sum(dbias, axis=0), mask=col < cols)
    if WITH_X_BIAS:
        partial_ptr += tl.num_programs(0).to(tl.int64) * cols
        tl.store(partial_ptr + offsets, tl.sum(dx_bias, axis=0), mask=col < cols)


def _tile(cols: int, values: int) -> dict[str, int]:
    """Return a block of one or more whole rows with about ``values`` per thread."""
    block = next_power_of_2(cols)
    rows = max(1, 128 * values // block)
    warps = min(max(rows * block // (32 * values), 4), 16)
    return dict(BLOCK_ROWS=rows, BLOCK_COLS=block, num_warps=warps)


def _launch_forward(
    x: Tensor, x_bias: Tensor | None, residual: Tensor | None, weight: Tensor, bias: Tensor,
    eps: float, dtype: torch.dtype,
) -> tuple[Tensor | None, Tensor]:  # fmt: skip
    """The sum, if there is a ``residual``, and its norm."""
    total = None if residual is None else empty_contiguous(residual)
    normed, cols = empty_contiguous(x, dtype), x.shape[-1]
    rows, tile = x.numel() // cols, _tile(cols, values=16)
    launch(
        add_layer_norm_forward_kernel, (cdiv(rows, tile["BLOCK_ROWS"]),),
        x.contiguous(), None if x_bias is None else x_bias.contiguous(),
        None if residual is None else residual.contiguous(),
        weight.contiguous(), bias.contiguous(), total, normed,
        rows, cols, eps, **tile,
    )  # fmt: skip
    return total, normed


def _launch_backward(
    sums: int, dsum: Tensor | None, dnormed: Tensor, total: Tensor, weight: Tensor, eps: float,
    x_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    d, dx, _ = _empty_grads(sums, dsum, dnormed, total, weight, eps, x_dtype)
    cols = total.shape[-1]
    rows, tile = total.numel() // cols, _tile(cols, values=8)
    # As many programs as the chip holds, but at least 8 tiles for each partial sum to be written.
    # With few rows, two programs per multiprocessor: a single one would wait for its loads.
    tiles, per_sm = cdiv(rows, tile["BLOCK_ROWS"]), max(1, RESIDENT_WARPS // tile["num_warps"])
    sms = num_sms(total.device)
    programs = max(1, min(tiles, per_sm * sms, max(cdiv(tiles, 8), 2 * sms)))
    registers = REGISTERS // (32 * tile["num_warps"] * per_sm)
    partials = weight.new_empty(sums, programs, cols, dtype=torch.float32)
    launch(
        add_layer_norm_backward_kernel, (programs,),
        None if dsum is None else dsum.contiguous(), dnormed.contiguous(), total.contiguous(),
        weight.contiguous(), d, dx if dx.numel() else None, partials, rows, cols, eps,
        per_sm=per_sm, maxnreg=registers // 8 * 8, WITH_X_BIAS=sums == 3, **tile,
    )  # fmt: skip
    return d, dx, partials.sum(1).to(weight.dtype)


def _empty_grads(
    sums: int, dsum: Tensor | None, dnormed: Tensor, total: Tensor, weight: Tensor, eps: float,
    x_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dx = total.new_empty(0 if x_dtype == total.dtype else total.shape, dtype=x_dtype)
    return empty_contiguous(total), dx, weight.new_empty(sums, *weight.shape)


def _register_backward(name: str, sums: int) -> Callable:
    """Register the gradients of x and of 2 parameters, or 3 with x_bias.

    The op returns the gradient in the residual's dtype; the gradient in x's dtype, or an empty
    tensor if the dtypes are equal, because an op must not return a tensor twice; and the sums over
    rows for weight, bias and x_bias, stacked.
    """
    return register(
        f"{name}(Tensor? dsum, Tensor dnormed, Tensor sum, Tensor weight, float eps,"
        " ScalarType x_dtype) -> (Tensor, Tensor, Tensor)",
        ref=partial(_ref_backward, sums),
        triton=partial(_launch_backward, sums),
        arguments={"dsum": "* D", "dnormed": "* D", "sum": "* D", "weight": "D"},
        fake=partial(_empty_grads, sums),
        is_backward=True,
    )


_backward_op = _register_backward("add_layer_norm_backward", sums=2)
_biased_backward_op = _register_backward("add_layer_norm_biased_backward", sums=3)


def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """For :func:`differentiate`; ``inputs`` holds the parameters in the order of their sums."""
    x, _, *parameters, eps = inputs
    ctx.save_for_backward(output[0], parameters[0])
    ctx.eps, ctx.x_dtype, ctx.dtypes = eps, x.dtype, [p.dtype for p in parameters]
    ctx.set_materialize_grads(False)


def differentiate(
    backward_op: Callable, ctx: Any, dsum: Tensor | None, dnormed: Tensor | None
) -> tuple[Tensor | None, ...]:
    """The gradients of x, of the residual, and of the parameters."""
    if dnormed is None:  # only the sum was used
        dx = None if dsum is None else dsum.to(ctx.x_dtype)
        return dx, dsum, *[None] * len(ctx.dtypes)
    total, weight = ctx.saved_tensors
    d, dx, sums = backward_op(dsum, dnormed, total, weight, ctx.eps, ctx.x_dtype)
    dx = d if ctx.x_dtype == d.dtype else dx
    return dx, d, *(s.to(dtype) for s, dtype in zip(sums, ctx.dtypes, strict=True))


def _setup_biased_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, x_bias, residual, weight, bias, eps = inputs
    setup_context(ctx, (x, residual, weight, bias, x_bias, eps), output)


def _differentiate_biased(
    ctx: Any, dsum: Tensor | None, dnormed: Tensor | None
) -> tuple[Tensor | None, ...]:
    dx, d, dweight, dbias, dx_bias = differentiate(_biased_backward_op, ctx, dsum, dnormed)
    if dnormed is None and d is not None:
        dx_bias = _sum_of_rows(d, ctx.dtypes[2])
    return dx, dx_bias, d, dweight, dbias


def differentiate_norm(backward_op: Callable, ctx: Any, dnormed: Tensor) -> tuple[Tensor, ...]:
    x, *parameters, eps, _ = saved_inputs(ctx)
    dx, _, sums = backward_op(None, dnormed, x, parameters[0], eps, x.dtype)
    return dx, *(s.to(p.dtype) for s, p in zip(sums, parameters, strict=True))


_op = register(
    "add_layer_norm(Tensor x, Tensor residual, Tensor weight, Tensor bias, float eps)"
    " -> (Tensor, Tensor)",
    ref=_ref,
    triton=lambda x, residual, weight, bias, eps: _launch_forward(
        x, None, residual, weight, bias, eps, x.dtype
    ),
    arguments={"x": "* D", "residual": "* D", "weight": "D", "bias": "D"},
    fake=lambda x, residual, *_: (empty_contiguous(residual), empty_contiguous(x)),
    setup_context=setup_context,
    backward=partial(differentiate, _backward_op),
)
_biased_op = register(
    "add_layer_norm_biased(Tensor x, Tensor x_bias, Tensor residual, Tensor weight, Tensor bias,"
    " float eps) -> (Tensor, Tensor)",
    ref=_ref_biased,
    triton=lambda x, x_bias, residual, weight, bias, eps: _launch_forward(
        x, x_bias, residual, weight, bias, eps, x.dtype
    ),
    arguments={"x": "* D", "x_bias": "D", "residual": "* D", "weight": "D", "bias": "D"},
    fake=lambda x, x_bias, residual, *_: (empty_contiguous(residual), empty_contiguous(x)),
    setup_context=_setup_biased_context,
    backward=_differentiate_biased,
)
_norm_op = register(
    "layer_norm(Tensor x, Tensor weight, Tensor bias, float eps, ScalarType dtype) -> Tensor",
    ref=_ref_norm,
    triton=lambda x, *others: _launch_forward(x, None, None, *others)[1],
    arguments={"x": "* D", "weight": "D", "bias": "D"},
    fake=lambda x, weight, bias, eps, dtype: empty_contiguous(x, dtype),
    backward=partial(differentiate_norm, _backward_op),
)


def add_layer_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-6,
    x_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """``sum = x + residual`` in ``residual``'s dtype, and ``LayerNorm(sum)`` in ``x``'s dtype.

    ``x`` and ``residual`` float ``[..., D]``, ``weight`` and ``bias`` float ``[D]``, each of any
    float dtype; ``eps`` is added to the variance. ``x_bias``, float ``[D]``, is added to ``x``: the
    bias of the preceding linear layer, whose gradient needs no extra pass here. Arithmetic
    and statistics are float32. Rows wider than 8,192 run in PyTorch. Raises ``ValueError`` naming
    an argument whose shape is wrong.

    Example::

        >>> norm = torch.nn.LayerNorm(64)
        >>> branch, x = torch.randn(2, 2, 5, 64)
        >>> x, normed = add_layer_norm(branch, x, norm.weight, norm.bias, norm.eps)
    """
    if residual.shape != x.shape:
        raise ValueError(
            f"residual: shape {tuple(residual.shape)} is not {tuple(x.shape)}, the shape of x"
        )
    if x_bias is None:
        run = _op if norm_has_kernel(x, residual.dtype, weight=weight, bias=bias) else _ref
        return run(x, residual, weight, bias, eps)
    found = norm_has_kernel(x, residual.dtype, weight=weight, bias=bias, x_bias=x_bias)
    return (_biased_op if found else _ref_biased)(x, x_bias, residual, weight, bias, eps)


def layer_norm(
    x: Tensor, weight: Tensor, bias: Tensor, eps: float = 1e-6, dtype: torch.dtype | None = None
) -> Tensor:
    """LayerNorm over the last dimension: :func:`add_layer_norm` without the addition.

    ``x`` float ``[..., D]``, ``weight`` and ``bias`` float ``[D]``. Returns ``x``'s shape in
    ``dtype``, by default ``x``'s: pass the compute dtype if ``x`` is a float32 residual stream.
    Raises ``ValueError`` naming an argument whose shape is wrong.
    """
    dtype = dtype or x.dtype
    run = _norm_op if norm_has_kernel(x, dtype, weight=weight, bias=bias) else _ref_norm
    return run(x, weight, bias, eps, dtype)


def norm_has_kernel(x: Tensor, other: torch.dtype, **parameters: Tensor) -> bool:
    """Whether a kernel supports these; raises ``ValueError`` for a parameter of another width."""
    if x.ndim == 0:
        raise ValueError("x: shape () has no rows")
    for name, parameter in parameters.items():
        if parameter.shape != x.shape[-1:]:
            raise ValueError(
                f"{name}: shape {tuple(parameter.shape)} is not [{x.shape[-1]}], the width of x"
            )
    dtypes = (parameter.dtype for parameter in parameters.values())
    return has_kernel(x, x.dtype, other, *dtypes) and x.shape[-1] <= MAX_WIDTH
