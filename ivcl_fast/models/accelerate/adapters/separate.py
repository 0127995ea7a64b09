"""Attention with three linear layers that writes its softmax out, as in MAE for videos (mae_st).

Where such a module calls PyTorch's attention instead, as Hugging Face's mostly do, it keeps its own
forward pass (``sdpa.py``).
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ivcl_fast.models.accelerate.adapters.adapter import present, unknown_parts
from ivcl_fast.models.accelerate.adapters.packed import (
    Layout,
    PackedAttention,
    dropout_name,
    heads_name,
)

NAMES = (("q", "k", "v"), ("q_proj", "k_proj", "v_proj"), ("query", "key", "value"))
OUT = ("proj", "out_proj", "o_proj")


class SeparateAttention(PackedAttention):
    """``proj(attention(q(x), k(x), v(x)))``."""

    def layouts(self, module: nn.Module) -> Iterator[Layout]:
        parts, heads = module._modules, heads_name(module)
        if heads is None:
            return
        for qkv in NAMES:
            for proj in OUT:
                if all(isinstance(parts.get(name), nn.Linear) for name in (*qkv, proj)):
                    yield Layout(
                        qkv, proj, heads,
                        after=present(module, ["proj_drop"]),
                        dropout=dropout_name(module, "attn_drop"),
                    )  # fmt: skip

    def reasons(self, module: nn.Module, layout: Layout) -> Iterator[str]:
        yield from unknown_parts(module, (*layout.qkv, layout.proj, "proj_drop", "attn_drop"))

    def keeps_own(self, layout: Layout) -> bool:
        return True
