"""``embed_patches``: from bytes of visible patches to tokens, in one pass.

With row m the k-th visible patch of frame f, of id n = ids[f, k], and its pixels as bytes,

    x = (byte / 255 - mean) / std,   y[m] = x[m] W^T + bias + pos[n].

Forward is one matrix product whose loader fetches the visible rows alone and turns bytes into
pixels on the way, and whose epilogue adds bias and position: no float image, no gathered copy.

Backward is one matrix product as well. A position is the weight of a one-hot input that says which
patch a row holds, so the same loader appends it to the pixels: with e[m] that one-hot vector,

    [dW | dpos^T] = dy^T [x | e],   dbias = sum of dpos over patches.

Saved for backward: the inputs. No atomics: each program sums its share of the rows, the shares are
summed afterwards, so two runs agree bit for bit. A non-finite dy reaches every row of dpos.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _triton
from ._op import differentiate, fused, register, vjp
from ._triton import tl, triton
from .launch import cdiv, launch, num_sms, rounds_float32

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def take_pixels(rows: Tensor, ids: Tensor, mean: float, std: float, dtype: torch.dtype) -> Tensor:
    """Normalised pixels ``[F, K, R]`` in ``dtype`` of the rows ``ids [F, K]`` of ``[F, N, R]``."""
    frames, patches, _ = rows.shape
    index = torch.arange(frames * patches, device=ids.device).view(frames, patches).gather(1, ids)
    taken = rows.flatten(0, 1).index_select(0, index.flatten())  # bytes, and whole rows at a time
    return ((taken.to(dtype) / 255 - mean) / std).unflatten(0, ids.shape)


def _ref(
    rows: Tensor, ids: Tensor, weight: Tensor, bias: Tensor, pos: Tensor,
    mean: float, std: float, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    x = take_pixels(rows, ids, mean, std, torch.promote_types(dtype, torch.float32)).to(dtype)
    return F.linear(x, weight.to(dtype), bias.to(dtype)) + F.embedding(ids, pos.to(dtype))


def _ref_backward(
    dy: Tensor, rows: Tensor, ids: Tensor, weight: Tensor, bias: Tensor, pos: Tensor,
    mean: float, std: float,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    return vjp(_ref, (rows, ids, weight, bias, pos, mean, std, dy.dtype), dy)[2:5]


@triton.jit
def _forward_kernel(
    rows_ptr, ids_ptr, weight_ptr, bias_ptr, pos_ptr, y_ptr,
    tokens, visible, patches, pixels, dim, scale, shift,
    BLOCK_TOKENS: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_PIXELS: tl.constexpr,
):  # fmt: skip
    # Neighbouring programs share their rows, and all of them the weight: both stay in L2.
    columns = tl.cdiv(dim, BLOCK_DIM)
    token = tl.program_id(0) // columns * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    d = tl.program_id(0) % columns * BLOCK_DIM + tl.arange(0, BLOCK_DIM)
    exists, within = token < tokens, d < dim
    patch = tl.load(ids_ptr + token, mask=exists, other=0)
    row = rows_ptr + ((token // visible).to(tl.int64) * patches + patch) * pixels
    column = weight_ptr + d.to(tl.int64) * pixels
    # The sum starts from bias and position: adding them at the end would take as many registers.
    mask = exists[:, None] & within[None, :]
    at = pos_ptr + patch[:, None] * dim + d[None, :]
    y = tl.load(at, mask=mask, other=0.0).to(tl.float32)
    y += tl.load(bias_ptr + d, mask=within, other=0.0).to(tl.float32)[None, :]
    for start in range(0, pixels, BLOCK_PIXELS):
        pixel = start + tl.arange(0, BLOCK_PIXELS)
        inside = (pixel < pixels)[None, :]
        byte = tl.load(row[:, None] + pixel[None, :], mask=exists[:, None] & inside, other=0)
        w = tl.load(column[:, None] + pixel[None, :], mask=within[:, None] & inside, other=0.0)
        x = (byte.to(tl.float32) * scale + shift).to(w.dtype)
        y = tl.dot(x, tl.trans(w), y, input_precision="ieee")
    at = y_ptr + token.to(tl.int64)[:, None] * dim + d[None, :]
    tl.store(at, y.to(y_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _backward_kernel(
    dy_ptr, rows_ptr, ids_ptr, share_ptr,
    tokens, visible, patches, pixels, columns, dim, scale, shift,
    BLOCK_TOKENS: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_COLUMNS: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
    d = tl.program_id(1) * BLOCK_DIM + tl.arange(0, BLOCK_DIM)
    is_pixel, within = (column < pixels)[None, :], d < dim
    share = tl.zeros([BLOCK_DIM, BLOCK_COLUMNS], tl.float32)
    for block in range(tl.program_id(2), tl.cdiv(tokens, BLOCK_TOKENS), tl.num_programs(2)):
        token = block * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
        exists = (token < tokens)[:, None]
        patch = tl.load(ids_ptr + token, mask=token < tokens, other=0)
        row = rows_ptr + ((token // visible).to(tl.int64) * patches + patch) * pixels
        byte = tl.load(row[:, None] + column[None, :], mask=exists & is_pixel, other=0)
        one_hot = (patch[:, None] == (column - pixels)[None, :]).to(tl.float32)
        x = tl.where(is_pixel, byte.to(tl.float32) * scale + shift, one_hot)
        at = dy_ptr + token.to(tl.int64)[:, None] * dim + d[None, :]
        dy = tl.load(at, mask=exists & within[None, :], other=0.0)
        share = tl.dot(tl.trans(dy), x.to(dy.dtype), share, input_precision="ieee")
    at = share_ptr + (tl.program_id(2) * dim + d).to(tl.int64)[:, None] * columns + column[None, :]
    tl.store(at, share, mask=within[:, None] & (column < columns)[None, :])


def _operand(dtype: torch.dtype) -> torch.dtype:
    """What the matrix product reads: the interpreter has none in bfloat16."""
    return torch.float32 if _triton.INTERPRET and dtype == torch.bfloat16 else dtype


def _tile(dtype: torch.dtype) -> tuple[int, int, dict[str, int]]:
    """Side of an output tile, depth of a step of its sum, and how a program runs it.

    Without tensor cores (float32) both operands of a step lie in registers: smaller steps.
    """
    if dtype == torch.float32:
        return 64, 16, {"num_warps": 4, "num_stages": 2}
    return 128, 64, {"num_warps": 8, "num_stages": 3}


def _forward(
    rows: Tensor, ids: Tensor, weight: Tensor, bias: Tensor, pos: Tensor,
    mean: float, std: float, dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    if dtype == torch.float32 and rounds_float32(rows.device):
        return _ref(rows, ids, weight, bias, pos, mean, std, dtype)
    (_, patches, pixels), dim = rows.shape, len(weight)
    weight = weight.to(_operand(dtype)).contiguous()  # once, not by every program that reads it
    y = torch.empty(*ids.shape, dim, dtype=dtype, device=rows.device)
    side, depth, options = _tile(weight.dtype)
    launch(
        _forward_kernel, (cdiv(ids.numel(), side) * cdiv(dim, 64),),
        rows.contiguous(), ids.contiguous(), weight, bias.contiguous(), pos.contiguous(), y,
        ids.numel(), ids.shape[1], patches, pixels, dim, 1 / (255 * std), -mean / std,
        # A narrow tile, so that two programs share a multiprocessor: one stores, one multiplies.
        BLOCK_TOKENS=side, BLOCK_DIM=64, BLOCK_PIXELS=depth, **options,
    )  # fmt: skip
    return y


def _backward(
    dy: Tensor, rows: Tensor, ids: Tensor, weight: Tensor, bias: Tensor, pos: Tensor,
    mean: float, std: float,
) -> tuple[Tensor | None, ...]:  # fmt: skip
    if dy.dtype == torch.float32 and rounds_float32(rows.device):
        return _ref_backward(dy, rows, ids, weight, bias, pos, mean, std)
    (_, patches, pixels), dim = rows.shape, len(weight)
    columns = 16 * cdiv(pixels + patches, 16)  # so that stores are of 16 bytes; what is over is 0
    dy = dy.to(_operand(dy.dtype)).contiguous()
    side, depth, options = _tile(dy.dtype)
    tiles = cdiv(columns, side), cdiv(dim, side)
    # Two programs for every multiprocessor, unless that leaves them too few rows to be worth it.
    splits = min(2 * num_sms(dy.device) // (tiles[0] * tiles[1]), ids.numel() // (4 * depth))
    splits = max(1, splits)
    shares = torch.empty(splits, dim, columns, dtype=torch.float32, device=dy.device)
    launch(
        _backward_kernel, (*tiles, splits),
        dy, rows.contiguous(), ids.contiguous(), shares,
        ids.numel(), ids.shape[1], patches, pixels, columns, dim, 1 / (255 * std), -mean / std,
        BLOCK_TOKENS=depth, BLOCK_DIM=side, BLOCK_COLUMNS=side, **options,
    )  # fmt: skip
    dweight, dpos, _ = shares.sum(0).tensor_split([pixels, pixels + patches], dim=1)
    dbias = dpos.sum(1).to(bias.dtype)
    return (
        dweight.to(weight.dtype, memory_format=torch.contiguous_format, copy=True),
        dbias,
        dpos.t().to(pos.dtype, memory_format=torch.contiguous_format, copy=True),
    )


def _empty(like: Tensor) -> Tensor:
    return torch.empty_like(like, memory_format=torch.contiguous_format)


_backward_op = register(
    "embed_patches_backward(Tensor dy, Tensor rows, Tensor ids, Tensor weight, Tensor bias, "
    "Tensor pos, float mean, float std) -> (Tensor, Tensor, Tensor)",
    ref=_ref_backward,
    triton=_backward,
    fake=lambda dy, rows, ids, weight, bias, pos, mean, std: (
        _empty(weight), _empty(bias), _empty(pos),
    ),
)  # fmt: skip
_op = register(
    "embed_patches(Tensor rows, Tensor ids, Tensor weight, Tensor bias, Tensor pos, "
    "float mean, float std, ScalarType dtype) -> Tensor",
    ref=_ref,
    triton=_forward,
    fake=lambda rows, ids, weight, bias, pos, mean, std, dtype: rows.new_empty(
        *ids.shape, weight.shape[0], dtype=dtype
    ),
)


def _setup_context(ctx, inputs, output) -> None:
    *tensors, ctx.mean, ctx.std, _ = inputs
    ctx.save_for_backward(*tensors)


def _differentiated(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
    grads = _backward_op(dy, *ctx.saved_tensors, ctx.mean, ctx.std)
    return None, None, *grads, None, None, None


differentiate("embed_patches", _setup_context, _differentiated)


def embed_patches(
    rows: Tensor, ids: Tensor, weight: Tensor, bias: Tensor, pos: Tensor,
    mean: float, std: float, out_dtype: torch.dtype | None = None,
) -> Tensor:  # fmt: skip
    """Tokens of the visible patches: their normalised pixels, embedded, plus their positions.

    ``rows`` uint8 ``[F, N, R]``: all patches of every frame. ``ids`` int64 ``[F, K]``, each in
    0..N-1 (unchecked on a GPU, as that would wait for it): the visible ones, in any order.
    ``weight`` float ``[D, R]``, ``bias`` ``[D]``, ``pos`` ``[N, D]``. ``mean`` and ``std`` are of
    pixels in [0, 1]. Returns ``[F, K, D]`` in ``out_dtype``, by default autocast's dtype where
    autocast is on and ``weight``'s where it is not; pixels and ``weight`` are rounded to that dtype
    and multiplied with float32 sums. Gradients go to ``weight``, ``bias`` and ``pos``.
    Raises ``ValueError`` naming the argument that does not fit.
    """
    _check(rows, ids, weight, bias, pos, std)
    device = rows.device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    dtype = out_dtype or autocast or weight.dtype
    if not dtype.is_floating_point:
        raise ValueError(f"out_dtype: {dtype} is not a floating-point dtype")
    if fused(rows, dtype, weight.dtype) and dtype in DTYPES:
        return _op(rows, ids, weight, bias, pos, mean, std, dtype)
    with torch.autocast(device, enabled=False):  # dtypes are settled above
        return _ref(rows, ids, weight, bias, pos, mean, std, dtype)


def _check(
    rows: Tensor, ids: Tensor, weight: Tensor, bias: Tensor, pos: Tensor, std: float
) -> None:
    if rows.dtype != torch.uint8 or rows.ndim != 3:
        raise ValueError(f"rows: {rows.dtype} {tuple(rows.shape)} is not uint8 [F, N, R]")
    frames, patches, pixels = rows.shape
    if ids.dtype != torch.int64 or ids.ndim != 2 or len(ids) != frames:
        raise ValueError(f"ids: {ids.dtype} {tuple(ids.shape)} is not int64 [{frames}, K]")
    if weight.ndim != 2 or weight.shape[1] != pixels:
        raise ValueError(f"weight: shape {tuple(weight.shape)} is not [D, {pixels}]")
    dim = weight.shape[0]
    if bias.shape != (dim,):
        raise ValueError(f"bias: shape {tuple(bias.shape)} is not [{dim}]")
    if pos.shape != (patches, dim):
        raise ValueError(f"pos: shape {tuple(pos.shape)} is not [{patches}, {dim}]")
    if not std > 0:
        raise ValueError(f"std: {std} is not above 0")
