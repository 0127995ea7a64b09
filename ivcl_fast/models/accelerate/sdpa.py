"""Fused attention inside a module's own forward pass, in the place of PyTorch's.

Most models end in ``torch.nn.functional.scaled_dot_product_attention``: timm's, all of Hugging
Face's by their attention interface, EVA, DINOv3, V-JEPA. Around it they normalise queries and keys,
rotate them, or scale what comes out. All of that stays their own code, with its hooks and
adapters: only that one function is replaced while the module runs, on this thread, and only where
both compute the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ivcl_fast.kernels import short_attention
from ivcl_fast.kernels.attention import Inputs, not_supported_reasons
from ivcl_fast.models.accelerate.guard import NN_MODULE, codes
from ivcl_fast.models.accelerate.lengths import is_fixed
from ivcl_fast.models.layers import PLAIN, compute_dtype

SDPA = F.scaled_dot_product_attention
NAMES = {"scaled_dot_product_attention", "ALL_ATTENTION_FUNCTIONS"}
"""Names by which a forward pass comes to PyTorch's attention."""


class Redirect(TorchFunctionMode):
    """Within this context, PyTorch's attention is fused where ``worth_it(tokens)``.

    ``worth_it`` takes queries as ``[B, N, heads, d]``.
    """

    def __init__(self, worth_it: Callable[[Tensor], bool]) -> None:
        super().__init__()
        self.worth_it = worth_it

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
        """``scaled_dot_product_attention``, of ``[B, heads, N, d]``."""
        plain = attn_mask is None and 0 <= dropout_p < 1 and not is_causal and not enable_gqa
        if plain and can_fuse(query, key, value, scale):
            x = query.transpose(1, 2)  # [B, N, heads, d]
            dtype = compute_dtype(x)
            inputs = Inputs(x.shape[1], x.shape[3], dtype, x.device)
            if self.worth_it(x) and not not_supported_reasons("short", inputs):
                parts = [part.transpose(1, 2).to(dtype) for part in (query, key, value)]
                qkv = torch.stack(parts, dim=2).flatten(2)
                out = short_attention(qkv, query.shape[1], dropout_p)
                return out.unflatten(2, x.shape[2:]).transpose(1, 2)
        return SDPA(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )


def can_fuse(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> bool:
    """Whether this is self-attention of plain tensors, of one length, at the usual scale.

    Autocast may give them their one dtype: some rotations widen queries and keys, but not values.
    """
    return (
        type(query) in PLAIN and type(key) in PLAIN and type(value) in PLAIN
        and query.ndim == 4
        and not query.is_nested
        and is_fixed(query.shape[2:3])
        and query.shape == key.shape == value.shape
        and len({compute_dtype(part) for part in (query, key, value)}) == 1
        and query.shape[2] > 0
        and (scale is None or math.isclose(scale, query.shape[3] ** -0.5, rel_tol=1e-6))
    )  # fmt: skip


def is_called_by(kind: type[nn.Module]) -> bool:
    """Whether a class's forward pass, or a method that this calls, names PyTorch's attention.

    None of them may name checkpoints, which call it once more when :class:`Redirect` has ended.
    """
    called = names(kind.forward)
    methods = [getattr(kind, name, None) for name in called if name not in NN_MODULE]
    used = called.union(*map(names, methods))
    return bool(NAMES & used) and not any("checkpoint" in name for name in used)


def names(function: Any) -> set[str]:
    """The names that a function's code and the functions inside it use."""
    return {name for code in codes(function) for name in code.co_names}
