"""``mixture_loss``: frames as mixtures of the slots' predictions, and their error, in one pass.

For every pixel of a frame, each of S slots predicts a colour c_s and a logit l_s. The learnt
background has the colour b and the constant logit l_b. With the true colour t, averaged over all
pixels and their three colours (constants: spread and weight):

    a = softmax(l_1, ..., l_S, l_b)            the shares,
    p = sum_s a_s c_s + a_b b                  the mixture,
    v = sum_s a_s c_s^2 + a_b b^2 - p^2        the variance of the colours,
    loss = avg((p - t)^2 + spread v + weight |b - t|).

Only the last term trains the background; in p and v it is a constant. With
g = dloss / count, dp = 2 g (p - t) - 2 g spread p, and u_s = sum over colours of
dp c_s + g spread c_s^2 (u_b likewise for b):

    dc_s = a_s (dp + 2 g spread c_s),
    dl_s = a_s (u_s - sum_k a_k u_k),          k over the slots and the background,
    db = g weight sum over frames of sign(b - t).

Forward reads the predictions once, and writes mixture and shares, which are also results. Backward
reads all of these once and writes the gradient. In PyTorch each step writes and keeps a float32
tensor as large as the predictions. Sums have a fixed order, without atomics, so two runs agree bit
for bit.

Saved for backward: the inputs, mixture and shares. If mixture or shares have incoming gradients,
or the true frames need one, backward runs in plain PyTorch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._arguments import check_arguments
from ._autograd import vjp
from ._op import empty_contiguous, has_kernel, register
from ._triton import tl, triton
from .launch import cdiv, launch, next_power_of_2

MAX_SLOTS = 256
"""The predictions of all slots for a pixel must fit in registers; more slots run in PyTorch."""


def _ref(
    drawn: Tensor, true: Tensor, background: Tensor, logit: float, spread: float, weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = torch.promote_types(drawn.dtype, torch.float32)
    colors, logits = drawn.to(dtype).unflatten(-1, (4, -1)).split([3, 1], dim=-2)
    true, learnt = true.to(dtype).unflatten(-1, (3, -1)), background.to(dtype)
    fixed = learnt.detach()
    shares = F.pad(logits.squeeze(-2), (0, 0, 0, 0, 0, 1), value=logit).softmax(dim=1)
    of_slots, rest = shares[:, :-1].unsqueeze(-2), shares[:, -1].unsqueeze(-2)
    parts = of_slots * colors
    frames = parts.sum(dim=1) + rest * fixed
    variance = (parts * colors).sum(dim=1) + rest * fixed.square() - frames.square()
    error = (frames - true).square() + spread * variance + weight * (learnt - true).abs()
    return error.mean(), frames.flatten(-2), shares


def _ref_backward(
    dloss: Tensor, drawn: Tensor, true: Tensor, background: Tensor, pred: Tensor, shares: Tensor,
    logit: float, spread: float, weight: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    ddrawn, _, dbackground = vjp(
        lambda *args: _ref(*args)[0], (drawn, true, background, logit, spread, weight), dloss
    )
    return ddrawn, dbackground


@triton.jit
def mixture_loss_forward_kernel(
    drawn_ptr, true_ptr, background_ptr, loss_ptr, pred_ptr, shares_ptr,
    slots, count, logit, spread, weight,
    PIXELS: tl.constexpr, BLOCK_SLOTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(count, BLOCK)
    frame = (tl.program_id(0) // blocks).to(tl.int64)
    at = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    slot, inside = tl.arange(0, BLOCK_SLOTS), at < count
    mask = (slot < slots)[:, None] & inside[None, :]
    patch, pixel = at // PIXELS, at % PIXELS
    of_slot = (frame * slots + slot) * (4 * count)
    ptrs = drawn_ptr + of_slot[:, None] + (patch * (4 * PIXELS) + pixel)[None, :]
    logits = tl.load(ptrs + 3 * PIXELS, mask=mask, other=float("-inf")).to(tl.float32)
    top = tl.maximum(tl.max(logits, axis=0), logit)
    share, rest = tl.exp(logits - top[None, :]), tl.exp(logit - top)
    scale = 1.0 / (tl.sum(share, axis=0) + rest)
    share, rest = share * scale[None, :], rest * scale
    share_ptrs = shares_ptr + frame * (slots + 1) * count + at
    tl.store(share_ptrs[None, :] + (slot * count)[:, None], share, mask=mask)
    tl.store(share_ptrs + slots * count, rest, mask=inside)
    loss = tl.zeros((BLOCK,), dtype=tl.float32)
    for color in tl.static_range(3):
        place = patch * (3 * PIXELS) + color * PIXELS + pixel
        c = tl.load(ptrs + color * PIXELS, mask=mask, other=0.0).to(tl.float32)
        b = tl.load(background_ptr + place, mask=inside, other=0.0).to(tl.float32)
        t = tl.load(true_ptr + frame * 3 * count + place, mask=inside, other=0.0).to(tl.float32)
        p = tl.sum(share * c, axis=0) + rest * b
        squares = tl.sum(share * c * c, axis=0) + rest * b * b
        tl.store(pred_ptr + frame * 3 * count + place, p, mask=inside)
        loss += (p - t) * (p - t) + spread * (squares - p * p) + weight * tl.abs(b - t)
    loss = tl.sum(tl.where(inside, loss, 0.0), axis=0)
    tl.store(loss_ptr + tl.program_id(0), loss)


@triton.jit
def mixture_loss_backward_kernel(
    dloss_ptr, drawn_ptr, true_ptr, background_ptr, pred_ptr, shares_ptr, ddrawn_ptr,
    slots, count, factor, spread,
    PIXELS: tl.constexpr, BLOCK_SLOTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(count, BLOCK)
    frame = (tl.program_id(0) // blocks).to(tl.int64)
    at = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    slot, inside = tl.arange(0, BLOCK_SLOTS), at < count
    mask = (slot < slots)[:, None] & inside[None, :]
    patch, pixel = at // PIXELS, at % PIXELS
    of_slot = (frame * slots + slot) * (4 * count)
    offsets = of_slot[:, None] + (patch * (4 * PIXELS) + pixel)[None, :]
    grad = tl.load(dloss_ptr).to(tl.float32) * factor
    share_ptrs = shares_ptr + frame * (slots + 1) * count + at
    share = tl.load(share_ptrs[None, :] + (slot * count)[:, None], mask=mask, other=0.0)
    rest = tl.load(share_ptrs + slots * count, mask=inside, other=0.0)
    value = tl.zeros((BLOCK_SLOTS, BLOCK), dtype=tl.float32)  # u_s
    of_rest = tl.zeros((BLOCK,), dtype=tl.float32)  # u_b
    for color in tl.static_range(3):
        place = patch * (3 * PIXELS) + color * PIXELS + pixel
        here = frame * 3 * count + place
        c = tl.load(drawn_ptr + offsets + color * PIXELS, mask=mask, other=0.0).to(tl.float32)
        b = tl.load(background_ptr + place, mask=inside, other=0.0).to(tl.float32)
        t = tl.load(true_ptr + here, mask=inside, other=0.0).to(tl.float32)
        p = tl.load(pred_ptr + here, mask=inside, other=0.0)
        dp, square = 2.0 * grad * (p - t - spread * p), grad * spread
        dc = share * (dp[None, :] + 2.0 * square * c)
        tl.store(
            ddrawn_ptr + offsets + color * PIXELS, dc.to(ddrawn_ptr.dtype.element_ty), mask=mask
        )
        value += c * (dp[None, :] + square * c)
        of_rest += b * (dp + square * b)
    mean = tl.sum(share * value, axis=0) + rest * of_rest
    dl = share * (value - mean[None, :])
    tl.store(ddrawn_ptr + offsets + 3 * PIXELS, dl.to(ddrawn_ptr.dtype.element_ty), mask=mask)


@triton.jit
def mixture_loss_background_kernel(
    dloss_ptr, true_ptr, background_ptr, dbackground_ptr, frames, count, factor,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at, row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.arange(0, ROWS)
    inside = at < count
    b = tl.load(background_ptr + at, mask=inside, other=0.0).to(tl.float32)[None, :]
    signs = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
    for first in range(0, frames, ROWS):
        frame = (first + row).to(tl.int64)[:, None]
        mask = (frame < frames) & inside[None, :]
        t = tl.load(true_ptr + frame * count + at[None, :], mask=mask, other=0.0).to(tl.float32)
        signs += tl.where(mask & (b > t), 1.0, 0.0) - tl.where(mask & (b < t), 1.0, 0.0)
    grad = tl.sum(signs, axis=0) * (tl.load(dloss_ptr).to(tl.float32) * factor)
    tl.store(dbackground_ptr + at, grad.to(dbackground_ptr.dtype.element_ty), mask=inside)


def _tiling(drawn: Tensor) -> tuple[tuple[int], dict[str, int]]:
    """Return the grid and tile sizes of the kernels; a program has a block of pixels of all slots.

    The grid has one axis, because CUDA limits a second one to 65,535 programs.
    """
    frames, slots, patches, width = drawn.shape
    block_slots = next_power_of_2(slots)
    block = max(16, min(256, 2048 // block_slots))
    sizes = {"PIXELS": width // 4, "BLOCK_SLOTS": block_slots, "BLOCK": block}
    return (frames * cdiv(patches * width // 4, block),), sizes


def _forward(
    drawn: Tensor, true: Tensor, background: Tensor, logit: float, spread: float, weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    frames, slots, patches, width = drawn.shape
    drawn, true, background = (x.contiguous() for x in (drawn, true, background))
    pred = empty_contiguous(true, torch.float32)
    shares = pred.new_empty(frames, slots + 1, patches, width // 4)
    grid, sizes = _tiling(drawn)
    losses = pred.new_empty(grid)
    launch(
        mixture_loss_forward_kernel, grid,
        drawn, true, background, losses, pred, shares,
        slots, patches * width // 4, logit, spread, weight,
        **sizes, num_warps=4,
    )  # fmt: skip
    return losses.sum() / true.numel(), pred, shares


def _backward(
    dloss: Tensor, drawn: Tensor, true: Tensor, background: Tensor, pred: Tensor, shares: Tensor,
    logit: float, spread: float, weight: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    frames, slots, patches, width = drawn.shape
    drawn, true, background, pred, shares = (
        x.contiguous() for x in (drawn, true, background, pred, shares)
    )
    ddrawn, dbackground = torch.empty_like(drawn), torch.empty_like(background)
    grid, sizes = _tiling(drawn)
    launch(
        mixture_loss_backward_kernel, grid,
        dloss, drawn, true, background, pred, shares, ddrawn,
        slots, patches * width // 4, 1 / true.numel(), spread,
        **sizes, num_warps=4,
    )  # fmt: skip
    count = background.numel()
    launch(
        mixture_loss_background_kernel, (cdiv(count, 64),),
        dloss, true, background, dbackground, frames, count, weight / true.numel(),
        ROWS=32, BLOCK=64,
    )  # fmt: skip
    return ddrawn, dbackground


SHAPES = {"drawn": "F S N 4Q", "true": "F N 3Q", "background": "N 3 Q"}

_backward_op = register(
    "mixture_loss_backward(Tensor dloss, Tensor drawn, Tensor true, Tensor background, "
    "Tensor pred, Tensor shares, float logit, float spread, float weight) -> (Tensor, Tensor)",
    ref=_ref_backward,
    triton=_backward,
    arguments={"dloss": "", **SHAPES, "pred": "F N 3Q", "shares": "F S+1 N Q"},
    fake=lambda dloss, drawn, true, background, pred, shares, logit, spread, weight: (
        empty_contiguous(drawn),
        empty_contiguous(background),
    ),
    is_backward=True,
)


def _setup_context(ctx, inputs, output) -> None:
    ctx.set_materialize_grads(False)
    tensors, ctx.constants = inputs[:3], inputs[3:]
    ctx.save_for_backward(*tensors, *output[1:])


def _autograd(ctx, dloss: Tensor | None, dpred: Tensor | None, dshares: Tensor | None):
    drawn, true, background, pred, shares = ctx.saved_tensors
    _, _, needs_true, *_ = ctx.needs_input_grad
    if dloss is not None and dpred is None and dshares is None and not needs_true:
        ddrawn, dbackground = _backward_op(
            dloss, drawn, true, background, pred, shares, *ctx.constants
        )
        return ddrawn, None, dbackground
    cotangents = (
        pred.new_zeros(()) if dloss is None else dloss,
        torch.zeros_like(pred) if dpred is None else dpred,
        torch.zeros_like(shares) if dshares is None else dshares,
    )
    return vjp(_ref, (drawn, true, background, *ctx.constants), cotangents)


_op = register(
    "mixture_loss(Tensor drawn, Tensor true, Tensor background, float logit, float spread, "
    "float weight) -> (Tensor, Tensor, Tensor)",
    ref=_ref,
    triton=_forward,
    arguments=SHAPES,
    fake=lambda drawn, true, background, logit, spread, weight: (
        true.new_empty((), dtype=torch.float32),
        empty_contiguous(true, torch.float32),
        drawn.new_empty(
            (drawn.shape[0], drawn.shape[1] + 1, drawn.shape[2], drawn.shape[3] // 4),
            dtype=torch.float32,
        ),
    ),
    setup_context=_setup_context,
    backward=_autograd,
)


def mixture_loss(
    drawn: Tensor, true: Tensor, background: Tensor, logit: float, spread: float, weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Mix frames from the slots' predictions and a background; compute the slot-attention loss.

    ``drawn`` float ``[F, S, N, 4*Q]``: three colours and a logit of each of Q pixels, by frame,
    slot and patch. ``true`` float ``[F, N, 3*Q]``: the frames' pixels, colour by colour.
    ``background`` float ``[N, 3, Q]``: the colours of pixels that no slot claims, with the logit
    ``logit``. ``spread`` and ``weight`` scale the variance of the mixed colours and the
    background's absolute error in the loss.

    Returns the loss, a float32 scalar; the mixed frames, ``[F, N, 3*Q]``; and the shares of the
    slots and, last, the background in every pixel, ``[F, S+1, N, Q]``. Both are float32 (float64
    for float64 ``drawn``). Only the background's error has a gradient for ``background``.
    Raises ``ValueError`` naming the argument that does not fit.

    Source: :class:`ivcl_fast.slot_autoencoder.MixtureDecoder`, which defines what is computed.
    """
    check_arguments(SHAPES, dict(drawn=drawn, true=true, background=background))
    if has_kernel(drawn) and drawn.shape[1] <= MAX_SLOTS:
        return _op(drawn, true.float(), background.float(), logit, spread, weight)
    return _ref(drawn, true, background, logit, spread, weight)
