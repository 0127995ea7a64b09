"""The structures that have a fused forward pass, one file each.

:data:`ADAPTERS` is tried in order. What an adapter recognises is used only if a copy with random
weights computes the same as the module's own forward pass (``probe.py``).
"""

from __future__ import annotations

from ivcl_fast.models.accelerate.adapters.adapter import Adapter
from ivcl_fast.models.accelerate.adapters.block import PreNormBlock
from ivcl_fast.models.accelerate.adapters.gated import GatedMlp
from ivcl_fast.models.accelerate.adapters.mlp import Mlp, SequentialMlp
from ivcl_fast.models.accelerate.adapters.multihead import Multihead
from ivcl_fast.models.accelerate.adapters.packed import PackedAttention, PreNormAttention
from ivcl_fast.models.accelerate.adapters.separate import SeparateAttention

ADAPTERS: tuple[Adapter, ...] = (
    PreNormBlock(),
    PackedAttention(),
    PreNormAttention(),
    SeparateAttention(),
    Multihead(),
    GatedMlp(),
    Mlp(),
    SequentialMlp(),
)
