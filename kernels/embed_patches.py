"""``embed_patches``: from the bytes of visible patches to tokens, in one pass.

Token m is the k-th visible patch of frame f, with id n = ids[f, k]. From its bytes,

    x = (byte / 255 - mean) / std,   y[m] = x[m] W^T + bias + pos[n].

Forward is one matrix product. It loads the visible rows only, converts bytes to pixels while
loading, and adds bias and position: no float image and no gathered copy is written to memory.

Backward is one matrix product as well. A position is the weight of a one-hot input for the token's
patch, so the loader appends that input to the pixels: with e[m] the one-hot vector,

    [dW | dpos^T] = dy^T [x | e],   dbias = sum of dpos over patches.

Each program sums over some of the tokens. The partial sums are added up afterwards, without
atomics, so two runs agree bit for bit. A non-finite dy makes every row of dpos non-finite.

Saved for backward: the inputs.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._arguments import Rule, above_zero, check_arguments
from ._autograd import plain, saved_inputs, vjp
from ._op import autocast_dtype, empty_contiguous, has_kernel, register
from ._triton import tl, triton
from .launch import cdiv, dot_dtype, float32_dot_is_tf32, launch, num_sms


def gather_pixels(rows: Tensor, ids: Tensor, mean: float, std: float, dtype: torch.dtype) -> Tensor:
    """Normalised pixels ``[F, K, R]`` in ``dtype`` of the rows ``ids [F, K]`` of ``[F, N, R]``."""
    frames, patches, _ = rows.shape
    if patches == 0 and ids.numel():
        raise ValueError(f"ids: {tuple(ids.shape)} of rows without patches, {tuple(rows.shape)}")
    index = torch.arange(frames * patches, device=ids.device).view(frames, patches).gather(1, ids)
    # It is faster to gather bytes, and whole rows at a time.
    gathered = rows.flatten(0, 1).index_select(0, index.flatten())
    return ((gathered.to(dtype) / 255 - mean) / std).unflatten(0, ids.shape)


def _ref(
    rows: Tensor, ids: Tensor, weight: Tensor, bias: Tensor, pos: Tensor,
    mean: float, std: float, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    x = gather_pixels(rows, ids, mean, std, torch.promote_types(dtype, torch.float32)).to(dtype)
    return F.linear(x, weight.to(dtype), bias.to(dtype)) + F.embedding(ids, pos.to(dtype))


def _ref_backward(
    dy: Tensor, rows: Tensor, ids: Tensor, weight: Tensor, bias: Tensor, pos: Tensor,
    mean: float, std: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    return vjp(_ref, (rows, ids, weight, bias, pos, mean, std, dy.dtype), dy)


@triton.jit
def embed_patches_forward_kernel(
    rows_ptr, ids_ptr, weight_ptr, bias_ptr, pos_ptr, y_ptr,
    tokens, visible, patches, pixels, dim, scale, shift,
    BLOCK_TOKENS: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_PIXELS: tl.constexpr,
):  # fmt: skip
    # Neighbouring programs share their rows, and all programs the weight: both stay in L2.
    dim_blocks = tl.cdiv(dim, BLOCK_DIM)
    token = tl.program_id(0) // dim_blocks * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    d = tl.program_id(0) % dim_blocks * BLOCK_DIM + tl.arange(0, BLOCK_DIM)
    token_mask, dim_mask = token < tokens, d < dim
    patch = tl.load(ids_ptr + token, mask=token_mask, other=0)
    patch = tl.minimum(tl.maximum(patch, 0), patches - 1)  # never out of bounds
    row_ptrs = rows_ptr + ((token // visible).to(tl.int64) * patches + patch) * pixels
    weight_ptrs = weight_ptr + d.to(tl.int64) * pixels
    # The sum starts from bias and position: adding them at the end needs the same registers.
    mask = token_mask[:, None] & dim_mask[None, :]
    pos_ptrs = pos_ptr + patch[:, None] * dim + d[None, :]
    y = tl.load(pos_ptrs, mask=mask, other=0.0).to(tl.float32)
    y += tl.load(bias_ptr + d, mask=dim_mask, other=0.0).to(tl.float32)[None, :]
    for start in range(0, pixels, BLOCK_PIXELS):
        pixel = start + tl.arange(0, BLOCK_PIXELS)
        pixel_mask = (pixel < pixels)[None, :]
        byte = tl.load(
            row_ptrs[:, None] + pixel[None, :], mask=token_mask[:, None] & pixel_mask, other=0
        )
        w = tl.load(
            weight_ptrs[:, None] + pixel[None, :], mask=dim_mask[:, None] & pixel_mask, other=0.0
        )
        x = (byte.to(tl.float32) * scale + shift).to(w.dtype)
        y = tl.dot(x, tl.trans(w), y, input_precision="ieee")
    y_ptrs = y_ptr + token.to(tl.int64)[:, None] * dim + d[None, :]
    tl.store(y_ptrs, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def embed_patches_backward_kernel(
    dy_ptr, rows_ptr, ids_ptr, partial_ptr,
    tokens, visible, patches, pixels, columns, dim, scale, shift,
    BLOCK_TOKENS: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    d = tl.program_id(1) * BLOCK_DIM + tl.arange(0, BLOCK_DIM)
    is_pixel, dim_mask = (column < pixels)[None, :], d < dim
    partial = tl.zeros([BLOCK_DIM, BLOCK_COLUMNS], tl.float32)
    for block in range(tl.program_id(2), tl.cdiv(tokens, BLOCK_TOKENS), tl.num_programs(2)):
        token = block * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
        token_mask = (token < tokens)[:, None]
        patch = tl.load(ids_ptr + token, mask=token < tokens, other=0)
        patch = tl.minimum(tl.maximum(patch, 0), patches - 1)
        row_ptrs = rows_ptr + ((token // visible).to(tl.int64) * patches + patch) * pixels
        byte = tl.load(row_ptrs[:, None] + column[None, :], mask=token_mask & is_pixel, other=0)
        one_hot = (patch[:, None] == (column - pixels)[None, :]).to(tl.float32)
        x = tl.where(is_pixel, byte.to(tl.float32) * scale + shift, one_hot)
        dy_ptrs = dy_ptr + token.to(tl.int64)[:, None] * dim + d[None, :]
        dy = tl.load(dy_ptrs, mask=token_mask & dim_mask[None, :], other=0.0)
        partial = tl.dot(tl.trans(dy), x.to(dy.dtype), partial, input_precision="ieee")
    partial_row = (tl.program_id(2) * dim + d).to(tl.int64)[:, None]
    partial_ptrs = partial_ptr + partial_row * columns + column[None, :]
    tl.store(partial_ptrs, partial, mask=dim_mask[:, None] & (column < columns)[None, :])


def _tile(dtype: torch.dtype) -> tuple[int, int, dict[str, int]]:
    """Return the side of an output tile, the k of one step of its sum, and launch options.

    Without tensor cores (float32) both operands of a step lie in registers, so steps are smaller.
    With more than one stage, Triton 3.6 to 3.8 overwrite registers of sm_90 that a WGMMA of the
    forward pass may still be reading (``benchmarks/aot`` counts these hazards).
    """
    if dtype == torch.float32:
        return 64, 16, {"num_warps": 4, "num_stages": 2}
    return 128, 64, {"num_warps": 8, "num_stages": 1}


def _forward(
    rows: Tensor, ids: Tensor, weight: Tensor, bias: Tensor, pos: Tensor,
    mean: float, std: float, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    if dtype == torch.float32 and float32_dot_is_tf32(rows.device):
        return _ref(rows, ids, weight, bias, pos, mean, std, dtype)
    (_, patches, pixels), dim = rows.shape, len(weight)
    # Convert it once, not in every program that reads it.
    weight = weight.to(dot_dtype(dtype)).contiguous()
    y = torch.empty(*ids.shape, dim, dtype=dtype, device=rows.device)
    side, block_k, options = _tile(weight.dtype)
    launch(
        embed_patches_forward_kernel, (cdiv(ids.numel(), side) * cdiv(dim, 64),),
        rows.contiguous(), ids.contiguous(), weight, bias.contiguous(), pos.contiguous(), y,
        ids.numel(), ids.shape[1], patches, pixels, dim, 1 / (255 * std), -mean / std,
        # A narrow tile lets a multiprocessor run two programs: one stores, one multiplies.
        BLOCK_TOKENS=side, BLOCK_DIM=64, BLOCK_PIXELS=block_k, **options,
    )  # fmt: skip
    return y


def _backward(
    dy: Tensor, rows: Tensor, ids: Tensor, weight: Tensor, bias: Tensor, pos: Tensor,
    mean: float, std: float,
) -> tuple[Tensor, ...]:  # fmt: skip
    if dy.dtype == torch.float32 and float32_dot_is_tf32(rows.device):
        return _ref_backward(dy, rows, ids, weight, bias, pos, mean, std)
    (_, patches, pixels), dim = rows.shape, len(weight)
    columns = 16 * cdiv(pixels + patches, 16)  # padded with zeros, so that stores are of 16 bytes
    dy = dy.to(dot_dtype(dy.dtype)).contiguous()
    side, block_k, options = _tile(dy.dtype)
    tiles = cdiv(columns, side), cdiv(dim, side)
    # As many programs as the chip holds (accumulators of a wide tile fill the registers of a
    # multiprocessor), unless storing a partial sum would cost more than it saves.
    per_sm = 8 // options["num_warps"]
    splits = min(per_sm * num_sms(dy.device) // (tiles[0] * tiles[1]), ids.numel() // (4 * block_k))
    splits = max(1, splits)
    partials = torch.empty(splits, dim, columns, dtype=torch.float32, device=dy.device)
    launch(
        embed_patches_backward_kernel, (*tiles, splits),
        dy, rows.contiguous(), ids.contiguous(), partials,
        ids.numel(), ids.shape[1], patches, pixels, columns, dim, 1 / (255 * std), -mean / std,
        per_sm=per_sm,
        BLOCK_TOKENS=block_k, BLOCK_DIM=side, BLOCK_COLUMNS=side, **options,
    )  # fmt: skip
    dweight, dpos, _ = partials.sum(0).tensor_split([pixels, pixels + patches], dim=1)
    dbias = dpos.sum(1).to(bias.dtype)
    return (
        dweight.to(weight.dtype, memory_format=torch.contiguous_format, copy=True),
        dbias,
        dpos.t().to(pos.dtype, memory_format=torch.contiguous_format, copy=True),
    )


_ARGUMENTS: dict[str, Rule] = {
    "rows": "uint8 F N R", "ids": "int64 F K", "weight": "D R", "bias": "D", "pos": "N D",
    "std": above_zero,
}  # fmt: skip
_backward_op = register(
    "embed_patches_backward(Tensor dy, Tensor rows, Tensor ids, Tensor weight, Tensor bias, "
    "Tensor pos, float mean, float std) -> (Tensor, Tensor, Tensor)",
    ref=_ref_backward,
    triton=_backward,
    multiplies=True,
    arguments={"dy": "F K D", **_ARGUMENTS},
    fake=lambda dy, rows, ids, weight, bias, pos, mean, std: (
        empty_contiguous(weight), empty_contiguous(bias), empty_contiguous(pos),
    ),
    is_backward=True,
)  # fmt: skip


_op = register(
    "embed_patches(Tensor rows, Tensor ids, Tensor weight, Tensor bias, Tensor pos, "
    "float mean, float std, ScalarType dtype) -> Tensor",
    ref=_ref,
    triton=_forward,
    multiplies=True,
    arguments=_ARGUMENTS,
    fake=lambda rows, ids, weight, bias, pos, mean, std, dtype: rows.new_empty(
        *ids.shape, weight.shape[0], dtype=dtype
    ),
    backward=lambda ctx, dy: _backward_op(dy, *saved_inputs(ctx)[:-1]),
)


def embed_patches(
    rows: Tensor, ids: Tensor, weight: Tensor, bias: Tensor, pos: Tensor,
    mean: float, std: float, out_dtype: torch.dtype | None = None,
) -> Tensor:  # fmt: skip
    """Embed the normalised pixels of the visible patches, and add their positions.

    ``rows`` uint8 ``[F, N, R]``: all N patches of every frame, R = 3 * side^2 bytes each.
    ``ids`` int64 ``[F, K]``: the visible patches in any order, each in 0..N-1 (not checked on a
    GPU, where a check would have to wait for the device; they are clamped there).
    ``weight`` float ``[D, R]``, ``bias`` ``[D]``, ``pos`` ``[N, D]``. ``mean`` and ``std`` are of
    pixels in [0, 1].

    Returns ``[F, K, D]`` in ``out_dtype``, by default autocast's dtype where autocast is on and
    ``weight``'s where it is off. Pixels and ``weight`` are rounded to that dtype; sums are float32.
    Gradients go to ``weight``, ``bias`` and ``pos``.
    Raises ``ValueError`` naming the argument that does not fit.

    Example::

        >>> rows = torch.randint(256, (2, 64, 192), dtype=torch.uint8)  # 2 frames, patches of 8x8
        >>> ids, pos = torch.tensor([[3, 9, 40], [0, 1, 2]]), torch.zeros(64, 128)
        >>> embed_patches(rows, ids, torch.randn(128, 192), torch.zeros(128), pos, 0.5, 0.5).shape
        torch.Size([2, 3, 128])
    """
    check_arguments(
        _ARGUMENTS, dict(rows=rows, ids=ids, weight=weight, bias=bias, pos=pos, std=std)
    )
    dtype = out_dtype or autocast_dtype(rows.device) or weight.dtype
    if not dtype.is_floating_point:
        raise ValueError(f"out_dtype: {dtype} is not a floating-point dtype")
    if has_kernel(rows, dtype, weight.dtype, bias.dtype, pos.dtype):
        return _op(rows, ids, weight, bias, pos, mean, std, dtype)
    return plain(_ref, (rows, ids, weight, bias, pos, mean, std, dtype))
