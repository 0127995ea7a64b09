"""The structures that have a fused forward pass, a file for each kind.

:data:`ADAPTERS` is tried in order. What an adapter recognises is used only if a copy with random
weights computes the same as the module's own forward pass (``probe.py``).
"""

from __future__ import annotations

from ivcl_fast.models.accelerate.adapters.adapter import Adapter
from ivcl_fast.models.accelerate.adapters.attention import (
    Multihead,
    PackedAttention,
    PreNormAttention,
    SeparateAttention,
)
from ivcl_fast.models.accelerate.adapters.block import PreNormBlock, RmsNormBlock
from ivcl_fast.models.accelerate.adapters.mlp import GatedMlp, Mlp, SequentialMlp

ADAPTERS: tuple[type[Adapter], ...] = (
    RmsNormBlock,
    PreNormBlock,
    PackedAttention,
    PreNormAttention,
    SeparateAttention,
    Multihead,
    GatedMlp,
    Mlp,
    SequentialMlp,
)
