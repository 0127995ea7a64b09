"""Fused attention in the place of PyTorch's, inside a module's own forward pass.

Norms, rotations, adapters and hooks around ``scaled_dot_product_attention`` stay the module's own
code. Only that function is replaced, while the module runs, on this thread.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ivcl_fast.kernels import short_attention
from ivcl_fast.kernels._op import constant_when_compiled
from ivcl_fast.kernels.attention import Inputs, not_supported_reasons
from ivcl_fast.models.accelerate.adapter import Adapter, is_fixed, is_slower
from ivcl_fast.models.accelerate.comparison import difference, remember
from ivcl_fast.models.accelerate.crossovers import SEPARATE
from ivcl_fast.models.layers import PLAIN, compute_dtype

SDPA = F.scaled_dot_product_attention


class SdpaAttention(Adapter):
    """Adapter of modules that call ``torch.nn.functional.scaled_dot_product_attention``."""

    kind = SEPARATE

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        x = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
        # Without a gain for this dtype, the mode's cost per operation is saved.
        if x is None or torch.compiler.is_exporting() or is_slower(self, x, SEPARATE, 1):
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        with Redirect(self):
            return super().forward(*args, **kwargs)  # type: ignore[misc]


class Redirect(TorchFunctionMode):
    """Context in which PyTorch's attention is fused where that is faster for ``part``."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is SDPA:
            return self.attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def attention(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
        dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:  # fmt: skip
        """``scaled_dot_product_attention`` of ``[B, heads, N, d]``."""
        is_plain = attn_mask is None and 0 <= dropout_p < 1 and not is_causal and not enable_gqa
        if is_plain and can_fuse(query, key, value, scale):
            x = query.transpose(1, 2)  # [B, N, heads, d]
            shape, dtype = (3, *query.shape[1:]), compute_dtype(x)
            if not (
                is_slower(self.part, x, SEPARATE, x.shape[1])
                or not_supported_reasons("short", Inputs(shape[2], shape[3], dtype, x.device))
                or sdpa_difference(x.device.type, shape, dtype)
            ):
                return fused(query, key, value, dropout_p)
        return SDPA(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )


def can_fuse(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> bool:
    """Whether this is self-attention of plain tensors of one length, at the usual scale.

    Autocast may give them their one dtype: some rotations widen queries and keys, but not values.
    """
    return (
        type(query) in PLAIN and type(key) in PLAIN and type(value) in PLAIN
        and query.ndim == 4
        and not query.is_nested
        and is_fixed(query.shape[1:])
        and query.shape == key.shape == value.shape
        and len({compute_dtype(part) for part in (query, key, value)}) == 1
        and query.numel() > 0
        and (scale is None or math.isclose(scale, query.shape[3] ** -0.5, rel_tol=1e-6))
    )  # fmt: skip


def fused(query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0) -> Tensor:
    """Attention ``[B, heads, N, d]`` by the fused op, which reads packed tensors."""
    dtype = compute_dtype(query)
    parts = [part.transpose(1, 2).to(dtype) for part in (query, key, value)]
    qkv = torch.stack(parts, dim=2).flatten(2)
    out = short_attention(qkv, query.shape[1], dropout)
    return out.unflatten(2, parts[0].shape[2:]).transpose(1, 2)


class SelfAttention(nn.Module):
    """What :mod:`~ivcl_fast.models.accelerate.comparison` compares for SDPA, of stacked queries,
    keys and values ``[B, 3, heads, N, d]``."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros((), device=device))

    def own_output(self, x: Tensor) -> Tensor:
        query, key, value = x.unbind(1)
        return SDPA(query, key, value)

    def fused_output(self, x: Tensor) -> Tensor:
        query, key, value = x.unbind(1)
        return fused(query, key, value)


@functools.cache
def self_attention(device: str) -> SelfAttention:
    return SelfAttention(device)


@constant_when_compiled
def sdpa_difference(device: str, shape: tuple[int, ...], dtype: torch.dtype) -> str | None:
    """How fused attention differs from SDPA for stacked inputs ``[B, *shape]``, or None."""
    key = ("scaled_dot_product_attention", device)
    remember(key, self_attention(device))
    return difference(key, shape, dtype)
