"""Triton kernels of ``short_attention`` for 65 to 128 tokens and heads of up to 64 columns.

A program computes one head of one frame. It keeps k and v on chip and scores them against a few
queries at a time, so that 72 tokens cost 96 queries instead of 128 and two programs share a
multiprocessor.
"""

from __future__ import annotations

from typing import Any

import torch

from ._random import drop_hash, drop_pairs
from ._triton import tl, triton
from .launch import TRITON_VERSION


@triton.jit
def _rows(ptr, start, stride, TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr,
          ROWS: tl.constexpr, COLS: tl.constexpr):  # fmt: skip
    """Pointers to ``ROWS`` rows of one head of one frame, and the mask of valid elements."""
    row, column = start + tl.arange(0, ROWS), tl.arange(0, COLS)
    mask = (row < TOKENS)[:, None] & (column < HEAD_DIM)[None, :]
    return ptr + row[:, None] * stride + column[None, :], mask


@triton.jit
def _load_rows(ptr, start, stride, TOKENS: tl.constexpr, HEAD_DIM: tl.constexpr,
               ROWS: tl.constexpr, COLS: tl.constexpr, OPERAND: tl.constexpr):  # fmt: skip
    ptrs, mask = _rows(ptr, start, stride, TOKENS, HEAD_DIM, ROWS, COLS)
    return tl.load(ptrs, mask=mask, other=0.0).to(OPERAND)


@triton.jit
def _softmax_of_keys(k, q, SCALE: tl.constexpr, TOKENS: tl.constexpr, TILE: tl.constexpr):
    """The softmax over keys of ``k @ q^T``, float32 ``[keys, queries]``."""
    scores = tl.dot(k, tl.trans(q), input_precision="ieee") * (SCALE * 1.4426950408889634)
    scores = tl.where((tl.arange(0, TILE) < TOKENS)[:, None], scores, float("-inf"))
    weights = tl.exp2(scores - tl.max(scores, axis=0)[None, :])
    return weights * (1.0 / tl.sum(weights, axis=0))[None, :]


@triton.jit
def short_attention_loop_forward_kernel(
    seed_ptr, qkv_ptr, out_ptr,
    TOKENS: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, SCALE: tl.constexpr,
    DROP_STEPS: tl.constexpr,
    TILE: tl.constexpr, QUERIES: tl.constexpr, COLS: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    frame, head = (tl.program_id(0) // HEADS).to(tl.int64), tl.program_id(0) % HEADS
    width: tl.constexpr = HEADS * HEAD_DIM
    q_ptr = qkv_ptr + frame * (TOKENS * 3 * width) + head * HEAD_DIM
    out_ptr += frame * (TOKENS * width) + head * HEAD_DIM
    k = _load_rows(q_ptr + width, 0, 3 * width, TOKENS, HEAD_DIM, TILE, COLS, OPERAND)
    v = _load_rows(q_ptr + 2 * width, 0, 3 * width, TOKENS, HEAD_DIM, TILE, COLS, OPERAND)
    if seed_ptr is not None:
        key_hash = drop_hash(seed_ptr, (frame * HEADS + head) * TOKENS + tl.arange(0, TILE))
    for start in range(0, TOKENS, QUERIES):
        q = _load_rows(q_ptr, start, 3 * width, TOKENS, HEAD_DIM, QUERIES, COLS, OPERAND)
        p = _softmax_of_keys(k, q, SCALE, TOKENS, TILE)
        if seed_ptr is not None:
            query = start + tl.arange(0, QUERIES)
            p = drop_pairs(p, key_hash[:, None], query[None, :], DROP_STEPS)
        out = tl.trans(tl.dot(tl.trans(v), p.to(OPERAND), input_precision="ieee"))
        ptrs, mask = _rows(out_ptr, start, width, TOKENS, HEAD_DIM, QUERIES, COLS)
        tl.store(ptrs, out.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def short_attention_loop_backward_kernel(
    seed_ptr, dout_ptr, qkv_ptr, dqkv_ptr,
    TOKENS: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, SCALE: tl.constexpr,
    DROP_STEPS: tl.constexpr,
    TILE: tl.constexpr, QUERIES: tl.constexpr, COLS: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    frame, head = (tl.program_id(0) // HEADS).to(tl.int64), tl.program_id(0) % HEADS
    width: tl.constexpr = HEADS * HEAD_DIM
    q_ptr = qkv_ptr + frame * (TOKENS * 3 * width) + head * HEAD_DIM
    dq_ptr = dqkv_ptr + frame * (TOKENS * 3 * width) + head * HEAD_DIM
    dout_ptr += frame * (TOKENS * width) + head * HEAD_DIM
    k = _load_rows(q_ptr + width, 0, 3 * width, TOKENS, HEAD_DIM, TILE, COLS, OPERAND)
    v = _load_rows(q_ptr + 2 * width, 0, 3 * width, TOKENS, HEAD_DIM, TILE, COLS, OPERAND)
    dk = tl.zeros([TILE, COLS], tl.float32)
    dv = tl.zeros([TILE, COLS], tl.float32)
    if seed_ptr is not None:
        key_hash = drop_hash(seed_ptr, (frame * HEADS + head) * TOKENS + tl.arange(0, TILE))
    for start in range(0, TOKENS, QUERIES):
        q = _load_rows(q_ptr, start, 3 * width, TOKENS, HEAD_DIM, QUERIES, COLS, OPERAND)
        dout = _load_rows(dout_ptr, start, width, TOKENS, HEAD_DIM, QUERIES, COLS, OPERAND)
        p = _softmax_of_keys(k, q, SCALE, TOKENS, TILE)
        dp = tl.dot(v, tl.trans(dout), input_precision="ieee")
        if seed_ptr is not None:
            query = start + tl.arange(0, QUERIES)
            dp = drop_pairs(dp, key_hash[:, None], query[None, :], DROP_STEPS)
        ds = (p * (dp - tl.sum(p * dp, axis=0)[None, :]) * SCALE).to(OPERAND)
        if seed_ptr is not None:
            p = drop_pairs(p, key_hash[:, None], query[None, :], DROP_STEPS)
        dv = tl.dot(p.to(OPERAND), dout, dv, input_precision="ieee")
        dk = tl.dot(ds, q, dk, input_precision="ieee")
        dq = tl.trans(tl.dot(tl.trans(k), ds, input_precision="ieee"))
        ptrs, mask = _rows(dq_ptr, start, 3 * width, TOKENS, HEAD_DIM, QUERIES, COLS)
        tl.store(ptrs, dq.to(dqkv_ptr.dtype.element_ty), mask=mask)
    ptrs, mask = _rows(dq_ptr + width, 0, 3 * width, TOKENS, HEAD_DIM, TILE, COLS)
    tl.store(ptrs, dk.to(dqkv_ptr.dtype.element_ty), mask=mask)
    ptrs, mask = _rows(dq_ptr + 2 * width, 0, 3 * width, TOKENS, HEAD_DIM, TILE, COLS)
    tl.store(ptrs, dv.to(dqkv_ptr.dtype.element_ty), mask=mask)


def loop_blocks(
    head_dim: int, dtype: torch.dtype, chip: int, drops_in_backward: bool
) -> dict[str, Any]:
    """The block of queries and compile options of the kernels that loop over queries.

    The tensor cores of sm_90 and sm_100 read operands from shared memory, as fast for 32 queries as
    for 16. With 128 registers per thread, two programs share a multiprocessor. Other chips keep
    operands in registers (whole rows for float32), where 32 queries would spill. A backward pass
    with dropout would also spill with 32 queries, and on sm_90 even with 16, unless a program has
    16 warps. Triton 3.8 spills with 32 queries in any backward pass on sm_90, and Triton 3.7 with
    8 warps and heads of up to 32 columns on sm_120.
    """
    if dtype == torch.float32:
        return dict(QUERIES=16, num_warps=8 if head_dim <= 32 else 16)
    if chip // 10 == 9 and drops_in_backward:
        return dict(QUERIES=16, num_warps=16)
    in_shared = chip // 10 in (9, 10)
    spills = drops_in_backward or (chip // 10 == 9 and TRITON_VERSION == (3, 8))
    queries = 32 if in_shared and not spills else 16
    narrow = head_dim <= 32 and chip // 10 == 12 and TRITON_VERSION == (3, 7)
    warps = 4 if narrow and not drops_in_backward else 8
    return dict(QUERIES=queries, num_warps=warps, maxnreg=128 if in_shared else None)
