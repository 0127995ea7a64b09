"""Attention with three linear layers that writes its softmax out, as in MAE for videos (mae_st).

Where such a module calls PyTorch's attention instead, as Hugging Face's mostly do, it keeps its own
forward pass (``sdpa.py``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ivcl_fast.kernels.attention import attention
from ivcl_fast.models.accelerate.adapters.adapter import Adapter, call_parts, unknown_parts
from ivcl_fast.models.accelerate.adapters.packed import heads_name, is_active
from ivcl_fast.models.layers import linear

NAMES = (("q", "k", "v"), ("q_proj", "k_proj", "v_proj"), ("query", "key", "value"))
OUT = ("proj", "out_proj", "o_proj")


class Layout(NamedTuple):
    """Names of an attention's parts."""

    qkv: tuple[str, ...]
    proj: str
    heads: str
    after: tuple[str, ...]
    dropout: str | None


class SeparateAttention(Adapter):
    """``proj(attention(q(x), k(x), v(x)))``."""

    kind = "attention"

    def layouts(self, module: nn.Module) -> Iterator[Layout]:
        parts, heads = module._modules, heads_name(module)
        if heads is None:
            return
        for qkv in NAMES:
            for proj in OUT:
                if all(isinstance(parts.get(name), nn.Linear) for name in (*qkv, proj)):
                    yield Layout(
                        qkv, proj, heads,
                        tuple(name for name in ("proj_drop",) if parts.get(name) is not None),
                        "attn_drop" if isinstance(parts.get("attn_drop"), nn.Dropout) else None,
                    )  # fmt: skip

    def reasons(self, module: nn.Module, layout: Layout) -> Iterator[str]:
        yield from unknown_parts(module, (*layout.qkv, layout.proj, "proj_drop", "attn_drop"))

    def read(self, layout: Layout) -> tuple[str, ...]:
        return ()

    def called(self, layout: Layout) -> tuple[str, ...]:
        dropout = () if layout.dropout is None else (layout.dropout,)
        return (*layout.qkv, layout.proj, *layout.after, *dropout)

    def keeps_own(self, layout: Layout) -> bool:
        return True

    def may_run(self, module: nn.Module, layout: Layout) -> bool:
        parts, dropout = module._modules, layout.dropout
        return dropout is None or not is_active(parts[dropout], module.training)

    def run(self, module: nn.Module, layout: Layout, x: Tensor) -> Tensor:
        parts: Any = module._modules
        qkv = torch.cat([linear(parts[name], x) for name in layout.qkv], dim=-1)
        x = linear(parts[layout.proj], attention(qkv, getattr(module, layout.heads)))
        return call_parts(module, layout.after, x)

    def width(self, module: nn.Module, layout: Layout) -> int:
        return module._modules[layout.qkv[0]].in_features  # type: ignore[union-attr, return-value]
