"""``short_attention``: multi-head attention of short sequences, read in place from packed qkv.

For every frame and head, with q, k, v the three ``[N, d]`` slices of its ``qkv [N, 3*D]``,

    P = softmax(q k^T / sqrt(d)),   out = P v;

    dv = P^T do,   dS = P * (do v^T - rowsum(P * do v^T)) / sqrt(d),   dq = dS k,   dk = dS^T q.

With dropout, drop(P) replaces P in P v and P^T do, and drop(do v^T) replaces do v^T in dS. Backward
recomputes the random numbers (``_random.py``).

A program computes one head of one tile: as many whole frames as fit, in memory order. It
scores every row of the tile against every other, under a block-diagonal mask that keeps the pairs
of one frame. So sequences of 12 tokens still fill the 64 rows of a tensor-core
product, nothing is permuted or copied, and qkv is read from memory once.

With 65 to 128 tokens, a program computes one head of one frame; with heads of up to 64 columns, it
loops over queries (``_attention_loop.py``).

Saved for backward: only qkv. A whole tile fits on chip, so backward recomputes P and needs neither
the output nor a log-sum-exp. It writes every element of dqkv once, without atomics, so two runs
agree bit for bit.

A frame with a non-finite value makes the other frames of its tile non-finite as well.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _triton
from ._attention_loop import (
    loop_blocks,
    short_attention_loop_backward_kernel,
    short_attention_loop_forward_kernel,
)
from ._autograd import saved_inputs, vjp
from ._op import device_kind, empty_contiguous, has_kernel, register
from ._random import draw_seed, drop, drop_hash, drop_pairs, drop_steps
from ._triton import tl, triton
from .launch import (
    TRITON_VERSION,
    arch,
    cdiv,
    dot_dtype,
    float32_dot_is_tf32,
    launch,
    next_power_of_2,
)

MAX_HEAD_DIM = 128


def _ref(qkv: Tensor, num_heads: int, dropout: float = 0.0, seed: Tensor | None = None) -> Tensor:
    q, k, v = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)  # [F, heads, N, d]
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)  # [F, heads, N, N]
    precision = torch.promote_types(qkv.dtype, torch.float32)
    weights = scores.softmax(dim=-1, dtype=precision)
    if dropout:
        weights = drop(weights, dropout, _required(seed))
    out = weights.to(qkv.dtype) @ v
    return out.transpose(1, 2).flatten(2).to(qkv.dtype)


def _ref_backward(
    dout: Tensor, qkv: Tensor, num_heads: int, dropout: float = 0.0, seed: Tensor | None = None
) -> Tensor:
    (dqkv,) = vjp(_ref, (qkv, num_heads, dropout, seed), dout)
    return dqkv


def _required(seed: Tensor | None) -> Tensor:
    if seed is None:
        raise ValueError("seed: None is not int64 [], which dropout needs")
    return seed


@triton.jit
def _tile_rows(rows, TOKENS: tl.constexpr, HEADS: tl.constexpr, TILE: tl.constexpr):
    """This program's head and rows, their tokens, the mask of valid rows, and of pairs of the same
    frame.

    Invalid rows form separate frames, so that their softmax is finite.
    """
    # The heads of a tile are neighbouring programs because they share cache lines.
    tile, head = tl.program_id(0) // HEADS, tl.program_id(0) % HEADS
    packed = TILE // TOKENS * TOKENS
    index = tl.arange(0, TILE)
    row = tile.to(tl.int64) * packed + index
    frame = index // TOKENS
    row_mask, same_frame = (index < packed) & (row < rows), frame[:, None] == frame[None, :]
    return head, row, index % TOKENS, row_mask, same_frame


@triton.jit
def _chunk(row_ptrs, row_mask, start, HEAD_DIM: tl.constexpr, CHUNK: tl.constexpr):
    """Pointers to the columns start..start+CHUNK of rows, and their mask."""
    column = start + tl.arange(0, CHUNK)
    return row_ptrs[:, None] + column[None, :], row_mask[:, None] & (column < HEAD_DIM)[None, :]


@triton.jit
def _matmul_transposed(
    a_ptrs, b_ptrs, row_mask,
    TILE: tl.constexpr, HEAD_DIM: tl.constexpr, CHUNK: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    """``a @ b^T`` of two matrices in memory, float32 ``[TILE, TILE]``."""
    total = tl.zeros([TILE, TILE], tl.float32)
    for start in range(0, HEAD_DIM, CHUNK):
        ptrs, mask = _chunk(a_ptrs, row_mask, start, HEAD_DIM, CHUNK)
        a = tl.load(ptrs, mask=mask, other=0.0).to(OPERAND)
        ptrs, mask = _chunk(b_ptrs, row_mask, start, HEAD_DIM, CHUNK)
        b = tl.load(ptrs, mask=mask, other=0.0).to(OPERAND)
        total = tl.dot(a, tl.trans(b), total, input_precision="ieee")
    return total


@triton.jit
def _matmul_store(
    weights, a_ptrs, out_ptrs, row_mask,
    HEAD_DIM: tl.constexpr, CHUNK: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    """``out = weights @ a``, with a and out in memory, stored in out's dtype."""
    for start in range(0, HEAD_DIM, CHUNK):
        ptrs, mask = _chunk(a_ptrs, row_mask, start, HEAD_DIM, CHUNK)
        a = tl.load(ptrs, mask=mask, other=0.0).to(OPERAND)
        out = tl.dot(weights, a, input_precision="ieee")
        ptrs, mask = _chunk(out_ptrs, row_mask, start, HEAD_DIM, CHUNK)
        tl.store(ptrs, out.to(out_ptrs.dtype.element_ty), mask=mask)


@triton.jit
def _softmax(scores, same_frame, SCALE: tl.constexpr):
    scores = tl.where(same_frame, scores * (SCALE * 1.4426950408889634), float("-inf"))
    weights = tl.exp2(scores - tl.max(scores, axis=1)[:, None])
    return weights * (1.0 / tl.sum(weights, axis=1))[:, None]


@triton.jit
def short_attention_forward_kernel(
    seed_ptr, qkv_ptr, out_ptr, rows,
    TOKENS: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, SCALE: tl.constexpr,
    DROP_STEPS: tl.constexpr,
    TILE: tl.constexpr, CHUNK: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    head, row, token, row_mask, same_frame = _tile_rows(rows, TOKENS, HEADS, TILE)
    width: tl.constexpr = HEADS * HEAD_DIM
    q = qkv_ptr + row * (3 * width) + head * HEAD_DIM
    scores = _matmul_transposed(q, q + width, row_mask, TILE, HEAD_DIM, CHUNK, OPERAND)
    p = _softmax(scores, same_frame, SCALE)
    if seed_ptr is not None:
        key_hash = drop_hash(seed_ptr, (row // TOKENS * HEADS + head) * TOKENS + token)
        p = drop_pairs(p, key_hash[None, :], token[:, None], DROP_STEPS)
    out = out_ptr + row * width + head * HEAD_DIM
    _matmul_store(p.to(OPERAND), q + 2 * width, out, row_mask, HEAD_DIM, CHUNK, OPERAND)


@triton.jit
def short_attention_backward_kernel(
    seed_ptr, dout_ptr, qkv_ptr, dqkv_ptr, rows,
    TOKENS: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, SCALE: tl.constexpr,
    DROP_STEPS: tl.constexpr,
    TILE: tl.constexpr, CHUNK: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    head, row, token, row_mask, same_frame = _tile_rows(rows, TOKENS, HEADS, TILE)
    width: tl.constexpr = HEADS * HEAD_DIM
    q = qkv_ptr + row * (3 * width) + head * HEAD_DIM
    dq = dqkv_ptr + row * (3 * width) + head * HEAD_DIM
    dout = dout_ptr + row * width + head * HEAD_DIM
    scores = _matmul_transposed(q, q + width, row_mask, TILE, HEAD_DIM, CHUNK, OPERAND)
    p = _softmax(scores, same_frame, SCALE)
    dp = _matmul_transposed(dout, q + 2 * width, row_mask, TILE, HEAD_DIM, CHUNK, OPERAND)
    if seed_ptr is not None:
        key_hash = drop_hash(seed_ptr, (row // TOKENS * HEADS + head) * TOKENS + token)
        dp = drop_pairs(dp, key_hash[None, :], token[:, None], DROP_STEPS)
    ds = (p * (dp - tl.sum(p * dp, axis=1)[:, None]) * SCALE).to(OPERAND)
    if seed_ptr is not None:
        p = drop_pairs(p, key_hash[None, :], token[:, None], DROP_STEPS)
    # q, k and dout are read again, from the cache: kept in registers they would spill.
    p = tl.trans(p.to(OPERAND))
    _matmul_store(p, dout, dq + 2 * width, row_mask, HEAD_DIM, CHUNK, OPERAND)
    _matmul_store(ds, q + width, dq, row_mask, HEAD_DIM, CHUNK, OPERAND)
    _matmul_store(tl.trans(ds), q, dq + width, row_mask, HEAD_DIM, CHUNK, OPERAND)


def _blocks(num_tokens: int, head_dim: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """Rows of a tile, columns of a head processed at once, and warps.

    Hopper's matrix instructions need at least 64 rows, 16 per warp. The number of columns is the
    largest that does not spill on sm_80, 90, 100 and 120. Without tensor cores (float32)
    the work grows with the square of the tile, so the tile is as small as the sequence allows.
    """
    if dtype == torch.float32:
        tile = max(16, next_power_of_2(num_tokens))
        return tile, 16, tile // 8
    if num_tokens <= 64:
        return 64, min(64, max(16, next_power_of_2(head_dim))), 4
    return 128, 32 if 16 < head_dim <= 64 else 16, 8


def _launch(
    qkv: Tensor, num_heads: int, dropout: float, seed: Tensor | None, *tensors: Tensor,
    backward: bool,
) -> None:  # fmt: skip
    frames, tokens, width = qkv.shape
    head_dim = width // (3 * num_heads)
    if not 1 <= tokens <= 128:
        raise ValueError(f"qkv: {tokens} tokens are not 1 to 128")
    first = _required(seed) if dropout else None
    shape = dict(
        TOKENS=tokens, HEADS=num_heads, HEAD_DIM=head_dim, SCALE=head_dim**-0.5,
        DROP_STEPS=drop_steps(dropout),
        OPERAND=getattr(tl, str(dot_dtype(qkv.dtype)).removeprefix("torch.")), num_stages=1,
    )  # fmt: skip
    # Triton 3.6 spills in the float32 forward that loops.
    if tokens > 64 and head_dim <= 64 and (backward or qkv.dtype != torch.float32):
        kernel = (
            short_attention_loop_backward_kernel
            if backward
            else short_attention_loop_forward_kernel
        )
        columns = max(16, next_power_of_2(head_dim))
        blocks = loop_blocks(head_dim, qkv.dtype, arch(qkv.device), backward and dropout > 0)
        launch(
            kernel, (frames * num_heads,), first, *tensors,
            **shape, TILE=128, COLS=columns, **blocks,
        )  # fmt: skip
        return
    kernel = short_attention_backward_kernel if backward else short_attention_forward_kernel
    tile, chunk, warps = _blocks(tokens, head_dim, qkv.dtype)
    # By default, the compiler limits these kernels to 64 registers on sm_100, and to 96 on sm_80
    # with Triton 3.7 and 3.8, and spills; the others are not limited.
    family = arch(qkv.device) // 10
    narrow = tile == 64 and head_dim <= 32 and family == 8 and TRITON_VERSION == (3, 8)
    limit = 128 if backward and (narrow or (tile == 32 and family in (8, 10))) else None
    launch(
        kernel, (cdiv(frames, tile // tokens) * num_heads,), first, *tensors, frames * tokens,
        TILE=tile, CHUNK=chunk, num_warps=warps, maxnreg=limit, **shape,
    )  # fmt: skip


def _needs_pytorch(qkv: Tensor, num_heads: int) -> bool:
    """Whether no kernel supports this float32 product, or the backward has too little memory."""
    if qkv.dtype != torch.float32:
        return False
    too_large = qkv.shape[1] > 64 and qkv.shape[2] // (3 * num_heads) > 64
    return too_large or float32_dot_is_tf32(qkv.device)


def _forward(
    qkv: Tensor, num_heads: int, dropout: float = 0.0, seed: Tensor | None = None
) -> Tensor:
    if _needs_pytorch(qkv, num_heads):
        return _ref(qkv, num_heads, dropout, seed)
    qkv = qkv.contiguous()
    out = torch.empty(*qkv.shape[:2], qkv.shape[2] // 3, dtype=qkv.dtype, device=qkv.device)
    _launch(qkv, num_heads, dropout, seed, qkv, out, backward=False)
    return out


def _backward(
    dout: Tensor, qkv: Tensor, num_heads: int, dropout: float = 0.0, seed: Tensor | None = None
) -> Tensor:
    if _needs_pytorch(qkv, num_heads):
        return _ref_backward(dout, qkv, num_heads, dropout, seed)
    dout, qkv = dout.contiguous(), qkv.contiguous()
    dqkv = torch.empty_like(qkv)
    _launch(qkv, num_heads, dropout, seed, dout, qkv, dqkv, backward=True)
    return dqkv


def _heads_do_not_fit(num_heads: int, sizes: dict[str, int]) -> str | None:
    width = sizes["W"]
    if num_heads < 1 or width < 3 * num_heads or width % (3 * num_heads):
        return f"does not divide qkv's width {width} in 3 parts"
    if sizes.get("D", width // 3) != width // 3:
        return f"heads: dout's width {sizes['D']} is not a third of qkv's, {width}"
    return None


def _bad_dropout(dropout: float, sizes: dict[str, int]) -> str | None:
    return None if 0 <= dropout < 1 else "is not from 0 to less than 1"


_backward_op = register(
    "short_attention_backward(Tensor dout, Tensor qkv, int num_heads, float dropout=0.0, "
    "Tensor? seed=None) -> Tensor",
    ref=_ref_backward,
    triton=_backward,
    multiplies=True,
    arguments={
        "dout": "F N D", "qkv": "F N W", "num_heads": _heads_do_not_fit, "dropout": _bad_dropout,
        "seed": "int64",
    },
    fake=lambda dout, qkv, num_heads, dropout=0.0, seed=None: empty_contiguous(qkv),
    is_backward=True,
)  # fmt: skip


_op = register(
    "short_attention(Tensor qkv, int num_heads, float dropout=0.0, Tensor? seed=None) -> Tensor",
    ref=_ref,
    triton=_forward,
    multiplies=True,
    arguments={
        "qkv": "F N W", "num_heads": _heads_do_not_fit, "dropout": _bad_dropout, "seed": "int64"
    },
    fake=lambda qkv, num_heads, dropout=0.0, seed=None: qkv.new_empty(
        *qkv.shape[:2], qkv.shape[2] // 3
    ),
    backward=lambda ctx, dout: _backward_op(dout, *saved_inputs(ctx)),
)  # fmt: skip


def max_tokens(device: torch.device) -> int:
    """Longest sequence: Triton's largest tile, or the longest for which C++ is faster."""
    return 512 if device_kind(device) == "cpu" and not _triton.INTERPRET else 128


def short_attention(
    qkv: Tensor, num_heads: int, dropout: float = 0.0, seed: Tensor | None = None
) -> Tensor:
    """Multi-head self-attention ``[F, N, D]`` of F independent short sequences.

    ``qkv`` float ``[F, N, 3*D]``: queries, keys and values side by side, each with its heads side
    by side, as a linear layer of width ``3*D`` returns them. N is 1 to 128 (1 to 512 on a CPU), the
    head size ``D / num_heads`` 1 to 128. The scale is ``head_size ** -0.5``. The softmax is
    computed in float32; products are of ``qkv``'s dtype with float32 sums, and true float32 for
    float32 (float64 runs in PyTorch).

    ``dropout``, from 0 to less than 1: the fraction of the softmax's weights to set to zero; the
    others are divided by ``1 - dropout``. The choice depends only on ``seed``, int64 ``[]``, on
    every device; by default the seed comes from PyTorch's generator.
    Raises ``ValueError`` naming the argument that does not fit.

    Example::

        >>> attn = torch.nn.Linear(64, 3 * 64)
        >>> x = torch.randn(8, 12, 64)
        >>> y = short_attention(attn(x), num_heads=4)  # [8, 12, 64]
    """
    if qkv.ndim != 3 or not qkv.is_floating_point():
        raise ValueError(f"qkv: {qkv.dtype} {tuple(qkv.shape)} is not a float [F, N, 3*D]")
    tokens, width = qkv.shape[1:]
    if num_heads < 1 or width % (3 * num_heads):
        raise ValueError(f"num_heads: {num_heads} does not divide qkv's width {width} in 3 parts")
    most = max_tokens(qkv.device)
    if not 1 <= tokens <= most:
        raise ValueError(f"qkv: {tokens} tokens are not 1 to {most}")
    if not 1 <= width // (3 * num_heads) <= MAX_HEAD_DIM:
        raise ValueError(
            f"num_heads: {num_heads} gives heads of {width // (3 * num_heads)} columns, "
            f"not 1 to {MAX_HEAD_DIM}"
        )
    run = _op if has_kernel(qkv) else _ref
    if dropout == 0:
        return run(qkv, num_heads)
    if wrong := _bad_dropout(dropout, {}):
        raise ValueError(f"dropout: {dropout} {wrong}")
    if seed is not None and (seed.dtype != torch.int64 or seed.ndim):
        raise ValueError(f"seed: {seed.dtype} {tuple(seed.shape)} is not int64 []")
    return run(qkv, num_heads, dropout, draw_seed(qkv.device) if seed is None else seed)
