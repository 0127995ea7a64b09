"""``torch.nn.MultiheadAttention``, which torchvision and open_clip use, as self-attention."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ivcl_fast import kernels
from ivcl_fast.kernels.attention import attention
from ivcl_fast.models.accelerate.adapters.adapter import Adapter, asks

ORDER = (
    "query", "key", "value", "key_padding_mask", "need_weights", "attn_mask",
    "average_attn_weights", "is_causal",
)  # fmt: skip


class Multihead(Adapter):
    """Batch first, of one width, without returned weights; others keep their own forward pass."""

    kind = "attention"

    def layouts(self, module: nn.Module) -> Iterator[tuple]:
        if isinstance(module, nn.MultiheadAttention):
            yield ()

    def reasons(self, module: Any, layout: tuple) -> Iterator[str]:
        if not module.batch_first:
            yield "its batch is not the first dimension"
        if not module._qkv_same_embed_dim:
            yield "queries, keys and values differ in width"
        if module.bias_k is not None or module.bias_v is not None or module.add_zero_attn:
            yield "it adds tokens to keys and values"

    def read(self, layout: tuple) -> tuple[str, ...]:
        return ("out_proj",)

    def may_run(self, module: Any, layout: tuple) -> bool:
        return module.dropout == 0.0 or not module.training

    def tokens(self, args: Sequence[Any], kwargs: Mapping[str, Any], first: str) -> Tensor | None:
        given = {**dict(zip(ORDER, args, strict=False)), **kwargs}
        query = given.get("query")
        same = given.get("key") is query and given.get("value") is query
        if not isinstance(query, Tensor) or not same or given.get("need_weights", True):
            return None
        extra = ("key_padding_mask", "attn_mask", "is_causal")
        return None if any(asks(given.get(name)) for name in extra) else query

    def trial_arguments(self, x: Tensor) -> tuple[tuple, dict[str, Any]]:
        return (x, x, x), {"need_weights": False}

    def run(self, module: Any, layout: tuple, x: Tensor) -> Tensor:
        x = kernels.linear(x, module.in_proj_weight, module.in_proj_bias)
        x = attention(x, module.num_heads)
        return kernels.linear(x, module.out_proj.weight, module.out_proj.bias)

    def width(self, module: Any, layout: tuple) -> int:
        return module.embed_dim
