"""``restore_tokens``: put visible tokens back to their places among mask tokens, plus position.

    out[f, S + n] = (visible[f, k] where ids_keep[f, k] == n, else mask_token) + pos[n]
    out[f, :S]    = prefix[f]                                (the decoder's slots, no position)

One pass writes every output row once. A row finds its k by comparing n with the frame's ids, so the
ids need not be sorted. Backward reads dout once: each program handles some rows n, columns and
frames, writes dvisible, and keeps partial sums of dpos and dmask_token in
registers. The partial sums are added up afterwards, without atomics, so two runs agree bit for bit.
dprefix is a view of dout.

Saved for backward: ids_keep, and mask_token and pos for their shapes and dtypes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._arguments import Rule, check_arguments
from ._autograd import vjp
from ._op import empty_contiguous, has_kernel, register
from ._triton import tl, triton
from .launch import cdiv, launch, num_sms

BLOCK_ROWS, BLOCK_COLS, BLOCK_IDS = 16, 128, 64
PER_SM = 4
"""Resident programs of the backward per multiprocessor, limited by registers."""


def _ref(
    visible: Tensor, ids_keep: Tensor, mask_token: Tensor, pos: Tensor, prefix: Tensor | None
) -> Tensor:
    frames, num_patches, dtype = visible.shape[0], len(pos), visible.dtype
    hidden = (mask_token + pos).to(dtype).expand(frames, num_patches, -1)
    tokens = (visible + F.embedding(ids_keep, pos)).to(dtype)
    out = hidden.scatter(1, ids_keep.unsqueeze(-1).expand_as(tokens), tokens)
    return out if prefix is None else torch.cat([prefix.to(dtype), out], dim=1)


def _ref_backward(
    dout: Tensor, ids_keep: Tensor, mask_token: Tensor, pos: Tensor
) -> tuple[Tensor, ...]:
    _check_length(dout, pos)
    visible = dout.new_empty(*ids_keep.shape, dout.shape[-1])
    of_patches = dout[:, dout.shape[1] - len(pos) :]
    return vjp(_ref, (visible, ids_keep, mask_token, pos, None), of_patches)


def _check_length(dout: Tensor, pos: Tensor) -> None:
    if dout.shape[1] < len(pos):
        raise ValueError(f"dout: {dout.shape[1]} tokens are fewer than pos has: {len(pos)}")


@triton.jit
def _find_visible(ids_ptr, frame, row, num_keep, BLOCK_IDS: tl.constexpr):
    """Index k of the visible token of each patch ``row`` of the frame, -1 for hidden patches."""
    visible_index = tl.zeros_like(row) - 1
    for start in range(0, num_keep, BLOCK_IDS):
        k = start + tl.arange(0, BLOCK_IDS)
        ids = tl.load(ids_ptr + frame * num_keep + k, mask=k < num_keep, other=-1).to(tl.int32)
        # Without the second condition, row -1 (the prefix's last) would match the padding.
        found = (row[:, None] == ids[None, :]) & (k < num_keep)[None, :]
        visible_index = tl.maximum(visible_index, tl.max(tl.where(found, k[None, :], -1), axis=1))
    return visible_index


@triton.jit
def restore_tokens_forward_kernel(
    visible_ptr, ids_ptr, mask_token_ptr, pos_ptr, prefix_ptr, out_ptr,
    num_keep, num_patches, num_prefix, cols,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr, BLOCK_IDS: tl.constexpr,
):  # fmt: skip
    length = num_prefix + num_patches
    blocks = tl.cdiv(length, BLOCK_ROWS)
    frame = (tl.program_id(0) // blocks).to(tl.int64)
    index = tl.program_id(0) % blocks * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)  # in the sequence
    row = index - num_prefix  # the patch; negative in the prefix
    col = tl.program_id(1) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    col_mask = (col < cols)[None, :]
    k = _find_visible(ids_ptr, frame, row, num_keep, BLOCK_IDS)

    is_patch = (row >= 0) & (row < num_patches)
    pos_offsets = row.to(tl.int64)[:, None] * cols + col[None, :]
    pos = tl.load(pos_ptr + pos_offsets, mask=is_patch[:, None] & col_mask, other=0.0)
    mask_token = tl.load(mask_token_ptr + col, mask=col < cols, other=0.0).to(tl.float32)
    visible_offsets = (frame * num_keep + k)[:, None] * cols + col[None, :]
    visible = tl.load(visible_ptr + visible_offsets, mask=(k >= 0)[:, None] & col_mask, other=0.0)
    token = tl.where((k >= 0)[:, None], visible.to(tl.float32), mask_token[None, :])
    out = token + pos.to(tl.float32)
    if prefix_ptr is not None:
        prefix_offsets = (frame * num_prefix + index)[:, None] * cols + col[None, :]
        in_prefix = (row < 0)[:, None]
        prefix = tl.load(prefix_ptr + prefix_offsets, mask=in_prefix & col_mask, other=0.0)
        out = tl.where(in_prefix, prefix.to(tl.float32), out)
    out_offsets = (frame * length + index)[:, None] * cols + col[None, :]
    out = out.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + out_offsets, out, mask=(index < length)[:, None] & col_mask)


@triton.jit
def restore_tokens_backward_kernel(
    dout_ptr, ids_ptr, dvisible_ptr, pos_partial_ptr, mask_partial_ptr,
    frames, num_keep, num_patches, num_prefix, cols,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr, BLOCK_IDS: tl.constexpr,
):  # fmt: skip
    blocks = tl.cdiv(num_patches, BLOCK_ROWS)
    split = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    row = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    col = tl.program_id(1) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    mask = (row < num_patches)[:, None] & (col < cols)[None, :]
    dpos = tl.zeros([BLOCK_ROWS, BLOCK_COLS], tl.float32)
    dmask_token = tl.zeros([BLOCK_ROWS, BLOCK_COLS], tl.float32)
    length = num_prefix + num_patches
    for number in range(split, frames, tl.num_programs(0) // blocks):
        frame = tl.zeros([1], tl.int64) + number
        k = _find_visible(ids_ptr, frame, row, num_keep, BLOCK_IDS)
        is_visible = (k >= 0)[:, None]
        dout_offsets = (frame * length + num_prefix + row)[:, None] * cols + col[None, :]
        dout = tl.load(dout_ptr + dout_offsets, mask=mask, other=0.0)
        visible_offsets = (frame * num_keep + k)[:, None] * cols + col[None, :]
        tl.store(dvisible_ptr + visible_offsets, dout, mask=mask & is_visible)
        dout = dout.to(tl.float32)
        dpos += dout
        dmask_token += tl.where(is_visible, 0.0, dout)
    offsets = (split * num_patches + row).to(tl.int64)[:, None] * cols + col[None, :]
    tl.store(pos_partial_ptr + offsets, dpos, mask=mask)
    offsets = tl.program_id(0).to(tl.int64) * cols + col
    tl.store(mask_partial_ptr + offsets, tl.sum(dmask_token, axis=0), mask=col < cols)


def _forward(
    visible: Tensor, ids_keep: Tensor, mask_token: Tensor, pos: Tensor, prefix: Tensor | None
) -> Tensor:
    frames, num_keep, cols = visible.shape
    num_patches, num_prefix = len(pos), 0 if prefix is None else prefix.shape[1]
    length = num_prefix + num_patches
    out = visible.new_empty(frames, length, cols)
    grid = (frames * cdiv(length, BLOCK_ROWS), cdiv(cols, BLOCK_COLS))
    launch(
        restore_tokens_forward_kernel, grid,
        visible.contiguous(), ids_keep.contiguous(), mask_token.contiguous(), pos.contiguous(),
        None if prefix is None else prefix.contiguous(), out,
        num_keep, num_patches, num_prefix, cols,
        BLOCK_ROWS=BLOCK_ROWS, BLOCK_COLS=BLOCK_COLS, BLOCK_IDS=BLOCK_IDS,
    )  # fmt: skip
    return out


def _backward(
    dout: Tensor, ids_keep: Tensor, mask_token: Tensor, pos: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    _check_length(dout, pos)
    dout = dout.contiguous()
    frames, length, cols = dout.shape
    num_keep, num_patches = ids_keep.shape[1], len(pos)
    dvisible = dout.new_zeros(frames, num_keep, cols)  # of repeated ids, one token has a gradient
    blocks, column_blocks = cdiv(num_patches, BLOCK_ROWS), cdiv(cols, BLOCK_COLS)
    # As many programs as the chip holds, but at least 8 frames for each partial sum to be written.
    fill = cdiv(PER_SM * num_sms(dout.device), blocks * column_blocks)
    splits = max(1, min(fill, frames // 8))
    pos_partials = dout.new_empty(splits, num_patches, cols, dtype=torch.float32)
    mask_partials = dout.new_empty(splits * blocks, cols, dtype=torch.float32)
    launch(
        restore_tokens_backward_kernel, (splits * blocks, column_blocks),
        dout, ids_keep.contiguous(), dvisible, pos_partials, mask_partials,
        frames, num_keep, num_patches, length - num_patches, cols, per_sm=PER_SM,
        BLOCK_ROWS=BLOCK_ROWS, BLOCK_COLS=BLOCK_COLS, BLOCK_IDS=BLOCK_IDS,
    )  # fmt: skip
    return dvisible, mask_partials.sum(0).to(mask_token.dtype), pos_partials.sum(0).to(pos.dtype)


_backward_op = register(
    "restore_tokens_backward(Tensor dout, Tensor ids_keep, Tensor mask_token, Tensor pos)"
    " -> (Tensor, Tensor, Tensor)",
    ref=_ref_backward,
    triton=_backward,
    arguments={"dout": "F L D", "ids_keep": "int64 F K", "mask_token": "D", "pos": "N D"},
    fake=lambda dout, ids_keep, mask_token, pos: (
        dout.new_empty(*ids_keep.shape, dout.shape[-1]),
        empty_contiguous(mask_token),
        empty_contiguous(pos),
    ),
    is_backward=True,
)


def _setup_context(ctx, inputs, output) -> None:
    _, ids_keep, mask_token, pos, prefix = inputs
    ctx.save_for_backward(ids_keep, mask_token, pos)
    ctx.prefix_dtype = None if prefix is None else prefix.dtype


def _autograd(ctx, dout: Tensor) -> tuple[Tensor, ...]:
    ids_keep, mask_token, pos = ctx.saved_tensors
    grads = _backward_op(dout, ids_keep, mask_token, pos)
    if ctx.prefix_dtype is None:
        return grads
    return *grads, dout[:, : dout.shape[1] - len(pos)].to(ctx.prefix_dtype)


_ARGUMENTS: dict[str, Rule] = {
    "visible": "F K D", "ids_keep": "int64 F K", "mask_token": "D", "pos": "N D", "prefix": "F S D"
}  # fmt: skip
_op = register(
    "restore_tokens(Tensor visible, Tensor ids_keep, Tensor mask_token, Tensor pos,"
    " Tensor? prefix) -> Tensor",
    ref=_ref,
    triton=_forward,
    arguments=_ARGUMENTS,
    fake=lambda visible, ids_keep, mask_token, pos, prefix: visible.new_empty(
        visible.shape[0], len(pos) + (0 if prefix is None else prefix.shape[1]), visible.shape[-1]
    ),
    setup_context=_setup_context,
    backward=_autograd,
)


def restore_tokens(
    visible: Tensor, ids_keep: Tensor, mask_token: Tensor, pos: Tensor, prefix: Tensor | None = None
) -> Tensor:
    """Restore full sequences ``[F, S + N, D]`` from visible tokens, in ``visible``'s dtype.

    ``visible`` float ``[F, K, D]``. ``ids_keep`` int64 ``[F, K]``: the places of the visible
    tokens, distinct, each in 0..N-1 (not checked on a GPU, where a check would have to wait for the
    device: a token out of range is left out, and of several at a place the last counts).
    ``mask_token`` float ``[D]`` fills the other places, and ``pos`` float ``[N, D]`` is added.
    ``prefix`` float ``[F, S, D]`` is prepended, without a position.
    Arithmetic is float32.
    Raises ``ValueError`` naming the argument whose shape or dtype does not fit.
    """
    tensors = dict(
        visible=visible, ids_keep=ids_keep, mask_token=mask_token, pos=pos, prefix=prefix
    )
    check_arguments(_ARGUMENTS, tensors)
    num_keep, width = visible.shape[1:]
    if len(pos) < num_keep:
        raise ValueError(
            f"pos: shape {tuple(pos.shape)} is not [N, {width}] with N at least {num_keep}"
        )
    floats = (visible, mask_token, pos) if prefix is None else (visible, mask_token, pos, prefix)
    run = _op if has_kernel(visible, *(x.dtype for x in floats)) else _ref
    return run(visible, ids_keep, mask_token, pos, prefix)
