"""``patch_loss``: mean squared error of predicted patches against uint8 patches, in one pass.

Row m of pred is the prediction for patch n = ids[f, k] of frame f, whose R pixels are bytes:

    x = (byte / 255 - mean) / std,   t = (x - avg(x)) / sqrt(var(x) + 1e-6)   (or t = x),
    loss = avg((pred - t)^2),   dpred = (2 * dloss / count) * (pred - t).

The normalisation is computed from the bytes, where mean cancels and centring is exact: the integers
R * byte - sum(byte) stay below 2^24. Times 1 / (255 * std * R), they are x - avg(x).

Forward reads pred and the masked rows once. If a gradient is needed, it also writes the error
pred - t, and backward multiplies it by 2 * dloss / count in float32. Forward must not apply that
factor: 2 / count underflows in float16, and the loss scale, which is part of dloss, could not
undo that. No float target and no gathered copy is written. The losses of rows are added up
afterwards, without atomics, so two runs agree bit for bit.

Saved for backward: the error.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._arguments import Rule, above_zero, check_arguments
from ._op import empty_contiguous, has_kernel, register
from ._triton import tl, triton
from .embed_patches import gather_pixels
from .launch import cdiv, launch, next_power_of_2

EPS = 1e-6
MAX_PIXELS = 16384
"""Largest patch: it must fit in registers, and larger ones (sides above 73) run in PyTorch."""


def _error(
    pred: Tensor, rows: Tensor, ids: Tensor, norm_pix: bool, mean: float, std: float
) -> Tensor:
    precision = torch.promote_types(pred.dtype, torch.float32)
    target = gather_pixels(rows, ids, mean, std, precision)
    if norm_pix:
        target = target - target.mean(dim=-1, keepdim=True)
        # Tensor.var would take ten times as long on a CPU.
        var = target.square().sum(dim=-1, keepdim=True) / (target.shape[-1] - 1)
        target = target / (var + EPS).sqrt()
    return pred.to(precision) - target


def _ref(
    pred: Tensor, rows: Tensor, ids: Tensor, norm_pix: bool, mean: float, std: float
) -> Tensor:
    return _error(pred, rows, ids, norm_pix, mean, std).square().mean()


def _ref_forward(
    pred: Tensor, rows: Tensor, ids: Tensor, norm_pix: bool, mean: float, std: float, grad: bool
) -> tuple[Tensor, Tensor]:
    error = _error(pred, rows, ids, norm_pix, mean, std)
    return error.square().mean(), error.to(pred.dtype) if grad else pred.new_empty(0)


def _ref_backward(dloss: Tensor, error: Tensor) -> Tensor:
    return (error.float() * (dloss * (2 / max(error.numel(), 1)))).to(error.dtype)


@triton.jit
def patch_loss_forward_kernel(
    pred_ptr, rows_ptr, ids_ptr, loss_ptr, error_ptr,
    tokens, masked, patches, scale, shift, eps,
    PIXELS: tl.constexpr, NORM_PIX: tl.constexpr, GRAD: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr, BLOCK_PIXELS: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    pixel = tl.arange(0, BLOCK_PIXELS)
    mask = (token < tokens)[:, None] & (pixel < PIXELS)[None, :]
    patch = tl.load(ids_ptr + token, mask=token < tokens, other=0)
    patch = tl.minimum(tl.maximum(patch, 0), patches - 1)  # never out of bounds
    row_ptrs = rows_ptr + ((token // masked).to(tl.int64) * patches + patch) * PIXELS
    offsets = token.to(tl.int64)[:, None] * PIXELS + pixel[None, :]
    pred = tl.load(pred_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    byte = tl.load(row_ptrs[:, None] + pixel[None, :], mask=mask, other=0).to(tl.float32)
    if NORM_PIX:
        centred = (byte * PIXELS - tl.sum(byte, axis=1)[:, None]) * (scale / PIXELS)
        centred = tl.where(mask, centred, 0.0)
        var = tl.sum(centred * centred, axis=1) / (PIXELS - 1)
        target = centred * (1.0 / tl.sqrt_rn(var + eps))[:, None]
    else:
        target = byte * scale + shift
    error = tl.where(mask, pred - target, 0.0)
    tl.store(loss_ptr + token, tl.sum(error * error, axis=1) / PIXELS, mask=token < tokens)
    if GRAD:
        tl.store(error_ptr + offsets, error.to(error_ptr.dtype.element_ty), mask=mask)


@triton.jit
def patch_loss_backward_kernel(dloss_ptr, error_ptr, dpred_ptr, count, factor, BLOCK: tl.constexpr):
    offsets = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < count
    error = tl.load(error_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    dpred = error * (tl.load(dloss_ptr).to(tl.float32) * factor)
    tl.store(dpred_ptr + offsets, dpred.to(dpred_ptr.dtype.element_ty), mask=mask)


def _forward(
    pred: Tensor, rows: Tensor, ids: Tensor, norm_pix: bool, mean: float, std: float, grad: bool
) -> tuple[Tensor, Tensor]:
    _, patches, pixels = rows.shape
    pred = pred.contiguous()
    losses = torch.empty(ids.numel(), dtype=torch.float32, device=pred.device)
    error = torch.empty_like(pred) if grad else pred.new_empty(0)
    block_pixels = next_power_of_2(pixels)
    block_tokens = max(1, 2048 // block_pixels)
    launch(
        patch_loss_forward_kernel, (cdiv(ids.numel(), block_tokens),),
        pred, rows.contiguous(), ids.contiguous(), losses, error,
        ids.numel(), ids.shape[1], patches, 1 / (255 * std), -mean / std, EPS,
        PIXELS=pixels, NORM_PIX=norm_pix, GRAD=grad,
        BLOCK_TOKENS=block_tokens, BLOCK_PIXELS=block_pixels,
        num_warps=min(16, max(4, block_pixels // 512)),
    )  # fmt: skip
    return losses.mean(), error


def _backward(dloss: Tensor, error: Tensor) -> Tensor:
    error, dpred, count = error.contiguous(), torch.empty_like(error), error.numel()
    launch(
        patch_loss_backward_kernel, (cdiv(count, 2048),),
        dloss, error, dpred, count, 2 / max(count, 1), BLOCK=2048,
    )  # fmt: skip
    return dpred


_backward_op = register(
    "patch_loss_backward(Tensor dloss, Tensor error) -> Tensor",
    ref=_ref_backward,
    triton=_backward,
    arguments={"dloss": "", "error": "*"},
    fake=lambda dloss, error: empty_contiguous(error),
    is_backward=True,
)


def _setup_context(ctx, inputs, output) -> None:
    ctx.set_materialize_grads(False)  # otherwise backward gets zeros for every pixel
    ctx.save_for_backward(output[1])


def _autograd(ctx, dloss: Tensor | None, derror: Tensor | None) -> Tensor | None:
    # Second derivatives have a gradient of the error, which is also that of pred.
    dpred = derror
    if dloss is not None:
        dpred = _backward_op(dloss, *ctx.saved_tensors)
        dpred = dpred if derror is None else dpred + derror
    return dpred


_op = register(
    "patch_loss(Tensor pred, Tensor rows, Tensor ids, bool norm_pix, float mean, float std, "
    "bool grad) -> (Tensor, Tensor)",
    ref=_ref_forward,
    triton=_forward,
    arguments={"pred": "F M R", "rows": "uint8 F N R", "ids": "int64 F M", "std": above_zero},
    fake=lambda pred, rows, ids, norm_pix, mean, std, grad: (
        pred.new_empty((), dtype=torch.float32),
        pred.new_empty(pred.shape if grad else 0),
    ),
    setup_context=_setup_context,
    backward=_autograd,
)


def patch_loss(
    pred: Tensor, rows: Tensor, ids_mask: Tensor, norm_pix: bool, mean: float, std: float
) -> Tensor:
    """Mean squared error of ``pred`` against the true pixels of the masked patches.

    ``pred`` float ``[F, M, R]``: predictions for the patches ``ids_mask``. ``rows`` uint8
    ``[F, N, R]``: all N patches of every frame. ``ids_mask`` int64 ``[F, M]``, each in 0..N-1 (not
    checked on a GPU, where a check would have to wait for the device; they are clamped there).
    ``mean`` and ``std`` are of pixels in [0, 1]. With ``norm_pix`` each target patch is normalised
    to zero mean and unit (unbiased) variance.

    Returns a float32 scalar (float64 for float64 ``pred``), nan where there are no patches. The
    gradient goes to ``pred``.
    Raises ``ValueError`` naming the argument that does not fit.
    """
    rules: dict[str, Rule] = {
        "rows": "uint8 F N R",
        "ids_mask": "int64 F M",
        "pred": "F M R",
        "std": above_zero,
    }
    check_arguments(rules, dict(rows=rows, ids_mask=ids_mask, pred=pred, std=std))
    if has_kernel(pred) and rows.shape[2] <= MAX_PIXELS:
        grad = torch.is_grad_enabled() and pred.requires_grad
        return _op(pred, rows, ids_mask, norm_pix, mean, std, grad)[0]
    return _ref(pred, rows, ids_mask, norm_pix, mean, std)
