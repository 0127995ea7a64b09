"""Adapters of attention modules.

If queries, keys and values are one tensor, the whole module is fused and reads it in place. In
other modules only the call of ``scaled_dot_product_attention`` is replaced, on the current thread:
norms, rotations and hooks around it run unchanged.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ivcl_fast import kernels
from ivcl_fast.kernels import short_attention
from ivcl_fast.kernels.attention import Inputs, attention, not_supported_reasons
from ivcl_fast.models.accelerate.adapter import Adapter, ComparedAdapter, is_fixed, is_slower
from ivcl_fast.models.accelerate.crossovers import PACKED, SEPARATE
from ivcl_fast.models.layers import PLAIN, compute_dtype, is_plain, linear


class TimmAttention(ComparedAdapter):
    """timm's ``Attention``: ``proj(attention(qkv(x)))``, without norms of queries and keys."""

    kind = PACKED

    def fused_input(self: Any, x: Any = None, *args: Any, **kwargs: Any) -> Tensor | None:
        # attn_mask=None and is_causal=False, in recent versions
        is_bare = all(value is None or value is False for value in (*args, *kwargs.values()))
        return x if is_bare and is_tokens(x, self.qkv.in_features) else None

    def own_reason(self: Any) -> str | None:
        return (
            super().own_reason()
            or changed_child(self, (nn.Linear, nn.Dropout, nn.Identity))
            or ("it has a gate" if self._modules.get("gate") is not None else None)
            or heads_reason(self.qkv.out_features, self.num_heads, self.scale)
            or dropout_reason(self, self.attn_drop)
        )

    def settings(self: Any) -> tuple:
        return *layer_settings(self.qkv), *layer_settings(self.proj), self.num_heads

    def fused_output(self: Any, x: Tensor) -> Tensor:
        qkv = linear(self.qkv, x)
        x = attention(qkv, self.num_heads, dropout=dropout_of(self, self.attn_drop))
        return self.proj_drop(linear(self.proj, x))


class VitPytorchAttention(ComparedAdapter):
    """vit-pytorch's ``Attention``: ``to_out(attention(to_qkv(norm(x))))``."""

    kind = PACKED

    def fused_input(self: Any, x: Any = None, *args: Any, **kwargs: Any) -> Tensor | None:
        return x if not args and not kwargs and is_tokens(x, self.to_qkv.in_features) else None

    def own_reason(self: Any) -> str | None:
        kinds = (nn.Linear, nn.Dropout, nn.Identity, nn.LayerNorm, nn.Softmax, nn.Sequential)
        return (
            super().own_reason()
            or changed_child(self, kinds)
            or heads_reason(self.to_qkv.out_features, self.heads, self.scale)
            or dropout_reason(self, self._modules.get("dropout"))
        )

    def settings(self: Any) -> tuple:
        return *layer_settings(self.to_qkv), self.heads, type(self.to_out).__name__

    def fused_output(self: Any, x: Tensor) -> Tensor:
        qkv = linear(self.to_qkv, self.norm(x))
        dropout = dropout_of(self, self._modules.get("dropout"))
        return self.to_out(attention(qkv, self.heads, dropout=dropout))


class TorchMultiheadAttention(ComparedAdapter):
    """``nn.MultiheadAttention`` with ``batch_first``, equal widths and without returned weights."""

    kind = PACKED

    def fused_input(
        self: Any, query: Any, key: Any, value: Any, key_padding_mask: Any = None,
        need_weights: bool = True, attn_mask: Any = None, average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> Tensor | None:  # fmt: skip
        is_masked = key_padding_mask is not None or attn_mask is not None or is_causal
        is_self_attention = key is query and value is query
        if need_weights or is_masked or not is_self_attention:
            return None
        return query if is_tokens(query, self.embed_dim) else None

    def own_reason(self: Any) -> str | None:
        if reason := super().own_reason():
            return reason
        if not self.batch_first or not self._qkv_same_embed_dim:
            return "its batch is not the first dimension, or its widths differ"
        if self.bias_k is not None or self.bias_v is not None or self.add_zero_attn:
            return "it adds tokens to keys and values"
        tensors = (*self._parameters.values(), *self.out_proj._parameters.values())
        if not all(p is None or type(p) in PLAIN for p in tensors):
            return "it has another kind of parameter"
        if type(self.out_proj) is not nn.modules.linear.NonDynamicallyQuantizableLinear:
            return f"out_proj is a {type(self.out_proj).__name__}"
        if not 0 <= self.dropout < 1:
            return "its dropout is not less than 1"
        return heads_reason(self.in_proj_weight.shape[0], self.num_heads)

    def settings(self: Any) -> tuple:
        weight, out = self.in_proj_weight, self.out_proj
        has_bias = self.in_proj_bias is not None
        return *weight.shape, weight.dtype, has_bias, *layer_settings(out), self.num_heads

    def own_output(self: Any, x: Tensor) -> Any:
        return self.origin.forward(self, x, x, x, need_weights=False)

    def fused_output(self: Any, x: Tensor) -> Any:
        qkv = kernels.linear(x, self.in_proj_weight, self.in_proj_bias)
        x = attention(qkv, self.num_heads, dropout=self.dropout if self.training else 0.0)
        return kernels.linear(x, self.out_proj.weight, self.out_proj.bias), None


def is_tokens(x: Any, width: int) -> bool:
    """Return whether ``x`` is a tensor ``[B, N, width]``."""
    return isinstance(x, Tensor) and not x.is_nested and x.ndim == 3 and x.shape[2] == width


def changed_child(part: nn.Module, kinds: tuple[type[nn.Module], ...]) -> str | None:
    """Return why a child is not a plain module of the expected class, or None."""
    for name, child in part._modules.items():
        if child is not None and type(child) not in kinds:
            return f"{name} is a {type(child).__name__}"
        if child is not None and not is_plain(child, type(child)):
            return f"{name} has a hook, or another forward pass or kind of parameter"
    return None


def heads_reason(width: int, heads: int, scale: float | None = None) -> str | None:
    """Return why the op does not support the heads or scale, or None; ``width``: of packed qkv."""
    if heads < 1 or width % (3 * heads):
        return "its heads do not divide its width"
    usual = (width // 3 // heads) ** -0.5
    if scale is not None and not math.isclose(scale, usual, rel_tol=1e-6):
        return "its scale is not the usual one"
    return None


def layer_settings(layer: Any) -> tuple:
    """Return the settings of a linear layer that affect its result."""
    weight = layer.weight
    return *weight.shape, layer.bias is not None, weight.dtype, weight.device.type


def dropout_of(part: Any, dropout: Any) -> float:
    """Return the dropout rate of the attention weights."""
    return dropout.p if dropout is not None and part.training else 0.0


def dropout_reason(part: Any, dropout: Any) -> str | None:
    """Return why the op does not support the attention dropout of ``part``, or None."""
    if dropout is None or dropout.p == 0:
        return None
    # Whether the training mode of the module or of its dropout counts depends on the version.
    if dropout.p < 1 and dropout.training == part.training:
        return None
    return "its dropout is 1, or in another mode than the module"


# --- PyTorch's attention inside a module ----------------------------------------------------------

SDPA = F.scaled_dot_product_attention


class SdpaAttention(Adapter):
    """Adapter of modules that call ``torch.nn.functional.scaled_dot_product_attention``."""

    kind = SEPARATE

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        x = next((a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)), None)
        # Without a gain for this dtype, skip the mode's overhead per operation.
        if x is None or torch.compiler.is_exporting() or is_slower(self, x, SEPARATE, 1):
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        with Redirect(self):
            return super().forward(*args, **kwargs)  # type: ignore[misc]


class Redirect(TorchFunctionMode):
    """Mode that replaces PyTorch's attention by the fused op if that is faster for ``part``."""

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
            inputs = Inputs(x.shape[1], x.shape[3], compute_dtype(x), x.device)
            slower = is_slower(self.part, x, SEPARATE, x.shape[1])
            if not slower and not not_supported_reasons("short", inputs):
                return fused(query, key, value, dropout_p)
        return SDPA(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )


def can_fuse(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> bool:
    """Return whether this is self-attention of plain tensors of one length, at the default scale.
    Dtypes may differ under autocast: some rotary embeddings widen queries and keys, but not values.
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
