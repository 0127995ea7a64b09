"""The kernel launches of a training step, to compile ahead of time or benchmark.

They include ops that only models under :func:`ivcl_fast.accelerate` use, with the encoder's sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ivcl_fast.config import IVCLConfig
from ivcl_fast.kernels._op import TRITON
from ivcl_fast.kernels.short_attention import max_tokens

CLIPS = 8
EPS = 1e-6
OBJECT_SLOTS = 11
"""Slots of slot attention: one for each of CATER's objects. The presets have fewer."""


def cases(
    cfg: IVCLConfig,
    dtype: torch.dtype = torch.bfloat16,
    clips: int = CLIPS,
    device: torch.device | str = "meta",
) -> dict[str, Callable[[], Any]]:
    """Return calls of every op's launch functions, forward and backward, by ``"op, where"``.

    Activations have ``dtype``, parameters float32, as under autocast. Call them under
    :func:`ivcl_fast.kernels.launch.record`. By default tensors have no storage, so the launches
    can only be compiled; on another device they can also run, on random numbers.
    """
    frames, queries = clips * cfg.num_frames, clips * cfg.num_query_frames
    kept, patches, slots = cfg.num_keep, cfg.num_patches, cfg.num_slots
    context = cfg.num_frames * slots + cfg.num_query_frames * kept
    width, decoder_width = cfg.embed_dim, cfg.decoder_dim
    tensor = partial(torch.randn, device=device)
    calls: dict[str, Callable[[], Any]] = {}
    # Stack of blocks, number of sequences, tokens of a sequence, width, heads.
    for stack, sequences, tokens, dim, heads in (
        ("encoder", frames, slots + kept, width, cfg.num_heads),
        ("encoder unmasked", frames, slots + patches, width, cfg.num_heads),
        ("temporal", clips, context, width, cfg.num_heads),
        ("temporal unmasked", clips, cfg.num_frames * slots, width, cfg.num_heads),
        ("decoder", queries, slots + patches, decoder_width, cfg.decoder_heads),
    ):
        x = tensor(sequences, tokens, dim, dtype=dtype)
        hidden = tensor(sequences, tokens, int(dim * cfg.mlp_ratio), dtype=dtype)
        calls[f"add_layer_norm, {stack}"] = partial(_add_layer_norm, x, torch.randn_like(x))
        calls[f"add_layer_norm, {stack}, float32 residual"] = partial(_add_layer_norm, x, x.float())
        calls[f"layer_norm, {stack}"] = partial(_layer_norm, x)
        calls[f"bias_gelu, {stack}"] = partial(_bias_gelu, hidden)
        if tokens <= max_tokens(torch.device("cuda")):
            calls[f"short_attention, {stack}"] = partial(_short_attention, x, heads)
            if stack.startswith("encoder"):  # for third-party models
                calls[f"short_attention, {stack}, dropout"] = partial(
                    _short_attention, x, heads, 0.1
                )
    shape = frames, patches, cfg.patch_dim
    rows = torch.randint(256, shape, dtype=torch.uint8, device=device)
    for where, tokens in (("visible", kept), ("all", patches)):
        out = tensor(frames, tokens, width, dtype=dtype)
        calls[f"embed_patches, {where}"] = partial(_embed_patches, rows, out)
    canvas = tensor(queries, slots + patches, decoder_width, dtype=dtype)
    for prefix in (slots, 0):
        name = "restore_tokens, after slots" if prefix else "restore_tokens"
        calls[name] = partial(_restore_tokens, canvas, kept, prefix, patches)
    pred = tensor(queries, patches - kept, cfg.patch_dim, dtype=dtype)
    for name, norm_pix, grad in (
        ("patch_loss", True, True),
        ("patch_loss, no gradient", True, False),
        ("patch_loss, raw pixels", False, True),
    ):
        calls[name] = partial(_patch_loss, pred, rows[:queries], norm_pix, grad)
    drawn = tensor(frames, OBJECT_SLOTS, patches, 4 * cfg.patch_size**2, dtype=dtype)
    calls["mixture_loss"] = partial(_mixture_loss, drawn)
    for where, count, num_patches, num_keep in (
        ("frames", frames, patches, kept),
        ("query", clips, cfg.num_frames, cfg.num_query_frames),
    ):
        seeds = torch.arange(count, device=device)
        sample = partial(TRITON["sample_masks"], seeds, num_patches, num_keep)
        calls[f"sample_masks, {where}"] = sample
    seeds = torch.arange(clips, device=device)
    calls["hash_seeds"] = partial(TRITON["hash_seeds"], seeds, cfg.num_frames + 1)
    return calls


def _parameter(like: Tensor, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float32, device=like.device)


def _ids(like: Tensor, frames: int, count: int, patches: int) -> Tensor:
    """Return random ascending patch ids of every frame."""
    order = torch.rand(frames, patches, device=like.device).argsort(dim=1)
    return order[:, :count].sort(dim=1).values


def _add_layer_norm(x: Tensor, residual: Tensor) -> None:
    weight = _parameter(x, x.shape[-1])
    TRITON["add_layer_norm_biased"](x, weight, residual, weight, weight, EPS)
    grads = torch.randn_like(residual), torch.randn_like(x)
    TRITON["add_layer_norm_biased_backward"](*grads, residual, weight, EPS, x.dtype)


def _layer_norm(x: Tensor) -> None:
    weight = _parameter(x, x.shape[-1])
    TRITON["layer_norm"](x, weight, weight, EPS, x.dtype)
    TRITON["add_layer_norm_backward"](None, torch.randn_like(x), x, weight, EPS, x.dtype)


def _bias_gelu(x: Tensor) -> None:
    bias = _parameter(x, x.shape[-1])
    TRITON["bias_gelu"](x, bias)
    TRITON["bias_gelu_backward"](torch.randn_like(x), x, bias)


def _short_attention(x: Tensor, heads: int, dropout: float = 0.0) -> None:
    qkv = torch.cat([x, x, x], dim=2)
    seed = torch.zeros((), dtype=torch.int64, device=x.device) if dropout else None
    TRITON["short_attention"](qkv, heads, dropout, seed)
    TRITON["short_attention_backward"](x, qkv, heads, dropout, seed)


def _embed_patches(rows: Tensor, out: Tensor) -> None:
    (frames, tokens, width), patches = out.shape, rows.shape[1]
    weight, bias = _parameter(out, width, rows.shape[2]), _parameter(out, width)
    ids, pos = _ids(out, frames, tokens, patches), _parameter(out, patches, width)
    args = rows, ids, weight, bias, pos, 0.5, 0.5
    TRITON["embed_patches"](*args, out.dtype)
    TRITON["embed_patches_backward"](out, *args)


def _restore_tokens(out: Tensor, kept: int, slots: int, patches: int) -> None:
    frames, _, width = out.shape
    ids = _ids(out, frames, kept, patches)
    args = ids, _parameter(out, width), _parameter(out, patches, width)
    prefix = out[:, :slots].contiguous() if slots else None
    TRITON["restore_tokens"](out[:, :kept].contiguous(), *args, prefix)
    TRITON["restore_tokens_backward"](out[:, : slots + patches].contiguous(), *args)


def _mixture_loss(drawn: Tensor) -> None:
    _, _, patches, width = drawn.shape
    true = _parameter(drawn, len(drawn), patches, 3 * width // 4)
    args = drawn, true, _parameter(drawn, patches, 3, width // 4)
    _, *mixed = TRITON["mixture_loss"](*args, 3.0, 0.1, 0.1)
    TRITON["mixture_loss_backward"](_parameter(drawn), *args, *mixed, 3.0, 0.1, 0.1)


def _patch_loss(pred: Tensor, rows: Tensor, norm_pix: bool, grad: bool) -> None:
    ids = _ids(pred, *pred.shape[:2], rows.shape[1])
    TRITON["patch_loss"](pred, rows, ids, norm_pix, 0.5, 0.5, grad)
    if grad:
        TRITON["patch_loss_backward"](_parameter(pred), pred)
