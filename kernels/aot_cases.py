"""What a training step asks of the ops: the one list of ops and shapes that is compiled ahead."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..config import IVCLConfig

CLIPS = 8
EPS = 1e-6
OPS = (
    "add_layer_norm", "bias_gelu", "embed_patches", "patch_loss", "restore_tokens",
    "sample_masks", "short_attention",
)  # fmt: skip


def cases(preset: str, dtype: torch.dtype = torch.bfloat16) -> dict[str, Callable[[], Any]]:
    """Calls of every op's launch functions, forward and backward, named ``"op, where"``.

    Activations have ``dtype``, parameters float32, as under autocast. Tensors have no storage: the
    calls are there to be recorded, see :func:`ivcl_fast.kernels.launch.record`.
    """
    cfg = IVCLConfig.preset(preset)
    frames, queries = CLIPS * cfg.num_frames, CLIPS * cfg.num_query_frames
    kept, patches, slots = cfg.num_keep, cfg.num_patches, cfg.num_slots
    context = cfg.num_frames * slots + cfg.num_query_frames * kept
    width, decoder_width = cfg.embed_dim, cfg.decoder_dim
    tensor = partial(torch.empty, device="meta")
    calls: dict[str, Callable[[], Any]] = {}
    # Every stack of blocks: sequences, tokens in each, width, heads.
    for stack, sequences, tokens, dim, heads in (
        ("encoder", frames, slots + kept, width, cfg.num_heads),
        ("encoder unmasked", frames, slots + patches, width, cfg.num_heads),
        ("temporal", CLIPS, context, width, cfg.num_heads),
        ("temporal unmasked", CLIPS, cfg.num_frames * slots, width, cfg.num_heads),
        ("decoder", queries, slots + patches, decoder_width, cfg.decoder_heads),
    ):
        x = tensor(sequences, tokens, dim, dtype=dtype)
        hidden = tensor(sequences, tokens, int(dim * cfg.mlp_ratio), dtype=dtype)
        calls[f"add_layer_norm, {stack}"] = partial(_add_layer_norm, x, x)
        calls[f"add_layer_norm, {stack}, float32 residual"] = partial(_add_layer_norm, x, x.float())
        calls[f"layer_norm, {stack}"] = partial(_layer_norm, x)
        calls[f"bias_gelu, {stack}"] = partial(_bias_gelu, hidden)
        if tokens <= _op("short_attention").max_tokens(torch.device("cuda")):
            calls[f"short_attention, {stack}"] = partial(_short_attention, x, heads)
    rows = tensor(frames, patches, cfg.patch_dim, dtype=torch.uint8)
    visible = tensor(frames, kept, width, dtype=dtype)
    calls["embed_patches, visible"] = partial(_embed_patches, rows, visible)
    calls["embed_patches, all"] = partial(
        _embed_patches, rows, tensor(frames, patches, width, dtype=dtype)
    )
    canvas = tensor(queries, slots + patches, decoder_width, dtype=dtype)
    for prefix in (slots, 0):
        name = "restore_tokens, after slots" if prefix else "restore_tokens"
        calls[name] = partial(_restore_tokens, canvas, kept, prefix, patches)
    pred = tensor(queries, patches - kept, cfg.patch_dim, dtype=dtype)
    calls["patch_loss"] = partial(_patch_loss, pred, rows[:queries], norm_pix=True, grad=True)
    calls["patch_loss, no gradient"] = partial(
        _patch_loss, pred, rows[:queries], norm_pix=True, grad=False
    )
    calls["patch_loss, raw pixels"] = partial(
        _patch_loss, pred, rows[:queries], norm_pix=False, grad=True
    )
    calls["sample_masks, frames"] = partial(_sample_masks, frames, patches, kept)
    calls["sample_masks, query"] = partial(
        _sample_masks, CLIPS, cfg.num_frames, cfg.num_query_frames
    )
    return calls


def _op(name: str) -> Any:
    return importlib.import_module(f".{name}", __package__)


def _parameter(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape, dtype=torch.float32)


def _ids(*shape: int) -> Tensor:
    return torch.empty(*shape, dtype=torch.int64, device="meta")


def _add_layer_norm(x: Tensor, residual: Tensor) -> None:
    op, weight = _op("add_layer_norm"), _parameter(x, x.shape[-1])
    op._forward(x, residual, weight, weight, EPS)
    op._backward(residual, x, residual, weight, EPS, x.dtype)


def _layer_norm(x: Tensor) -> None:
    op, weight = _op("add_layer_norm"), _parameter(x, x.shape[-1])
    op._forward_norm(x, weight, weight, EPS, x.dtype)
    op._backward(None, x, x, weight, EPS, x.dtype)


def _bias_gelu(x: Tensor) -> None:
    op, bias = _op("bias_gelu"), _parameter(x, x.shape[-1])
    op._forward(x, bias)
    op._backward(x, x, bias)


def _short_attention(x: Tensor, heads: int) -> None:
    op, qkv = _op("short_attention"), x.new_empty(*x.shape[:2], 3 * x.shape[2])
    op._forward(qkv, heads)
    op._backward(x, qkv, heads)


def _embed_patches(rows: Tensor, out: Tensor) -> None:
    op, (frames, tokens, width) = _op("embed_patches"), out.shape
    weight, bias = _parameter(out, width, rows.shape[2]), _parameter(out, width)
    args = rows, _ids(frames, tokens), weight, bias, _parameter(out, rows.shape[1], width)
    op._forward(*args, 0.5, 0.5, out.dtype)
    op._backward(out, *args, 0.5, 0.5)


def _restore_tokens(out: Tensor, kept: int, slots: int, patches: int) -> None:
    op, (frames, _, width) = _op("restore_tokens"), out.shape
    args = _ids(frames, kept), _parameter(out, width), _parameter(out, patches, width)
    prefix = out.new_empty(frames, slots, width) if slots else None
    op._forward(out.new_empty(frames, kept, width), *args, prefix)
    op._backward(out.new_empty(frames, slots + patches, width), *args)


def _patch_loss(pred: Tensor, rows: Tensor, norm_pix: bool, grad: bool) -> None:
    op = _op("patch_loss")
    op._forward(pred, rows, _ids(*pred.shape[:2]), norm_pix, 0.5, 0.5, grad)
    if grad:
        op._backward(_parameter(pred), pred)


def _sample_masks(frames: int, patches: int, kept: int) -> None:
    _op("sample_masks")._sample(_ids(frames), patches, kept)
