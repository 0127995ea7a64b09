"""Self-attention.

* :class:`PackedAttention`: ``qkv`` and ``proj``, as in timm, MAE, DINO, VideoMAE, EVA; biases
  ``q_bias`` and ``v_bias`` may be parameters of their own.
* :class:`PreNormAttention`: ``norm``, ``to_qkv`` and ``to_out``, as in vit-pytorch.
* :class:`SeparateAttention`: three linear layers and a softmax that is written out, as in MAE for
  videos (mae_st). Where such a module calls PyTorch's attention instead, as Hugging Face's mostly
  do, it keeps its own forward pass (``sdpa.py``).
* :class:`Multihead`: ``torch.nn.MultiheadAttention``, which torchvision and open_clip use.

Norms of queries and keys over a head's columns are called; whatever else changes queries and keys,
such as a rotation, is left to the module's own forward pass (``sdpa.py``).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ivcl_fast import kernels
from ivcl_fast.kernels.attention import attention
from ivcl_fast.models.accelerate.adapters.adapter import (
    Adapter,
    asks,
    call_parts,
    is_identity,
    present,
    unknown_parts,
)
from ivcl_fast.models.accelerate.crossovers import SEPARATE_ATTENTION
from ivcl_fast.models.layers import linear

HEADS = ("num_heads", "heads", "n_heads", "num_attention_heads")
BIASES = ("q_bias", "k_bias", "v_bias")
QK_NORMS = ("q_norm", "k_norm")
SEPARATE = (("q", "k", "v"), ("q_proj", "k_proj", "v_proj"), ("query", "key", "value"))
OUT = ("proj", "out_proj", "o_proj")
QKV = ("query", "key", "value")


def has_all(module: nn.Module, *names: str) -> bool:
    """Whether ``module`` has parts under all of these names."""
    return present(module, names) == names


def heads_name(module: nn.Module) -> str | None:
    """The attribute that holds the number of heads."""
    return next((name for name in HEADS if type(getattr(module, name, None)) is int), None)


def dropout_name(module: nn.Module, name: str) -> str | None:
    """``name`` if that child is a dropout."""
    return name if isinstance(module._modules.get(name), nn.Dropout) else None


@dataclass
class PackedAttention(Adapter):
    """``proj(attention(qkv(x)))``."""

    qkv: tuple[str, ...]
    """The layer that makes queries, keys and values, or one for each."""
    widths: tuple[int | None, ...]
    """Columns that these returned in the trial; the scale of the scores depends on them."""
    proj: str
    heads: str
    first: tuple[str, ...] = ()
    """Called on the tokens."""
    before: tuple[str, ...] = ()
    """Called between attention and ``proj``."""
    after: tuple[str, ...] = ()
    dropout: str | None = None
    """Of attention weights: a child, whose probability is read."""
    has_biases: bool = False
    has_norms: bool = False
    """Of queries and keys."""

    kind = "attention"
    optional: ClassVar[tuple[str, ...]] = (
        "attn_drop", "proj_drop", "norm", "gate", *QK_NORMS, "q_proj", "k_proj", "v_proj"
    )  # fmt: skip

    @classmethod
    def fitting(cls, module: nn.Module) -> Iterator[Self]:
        parts = module._modules
        if has_all(module, "qkv", "proj") and (heads := heads_name(module)) is not None:
            yield cls(
                ("qkv",), widths(module, ["qkv"]), "proj", heads,
                before=present(module, ["norm"]),
                after=present(module, ["proj_drop"]),
                dropout=dropout_name(module, "attn_drop"),
                has_biases=isinstance(getattr(module, "q_bias", None), Tensor),
                has_norms=not all(is_identity(parts.get(name)) for name in QK_NORMS),
            )  # fmt: skip

    def reasons(self, module: nn.Module) -> Iterator[str]:
        yield from unknown_parts(module, (*self.qkv, self.proj, *self.optional), BIASES)
        if not is_identity(gate := module._modules.get("gate")):
            yield f"gate ({type(gate).__name__}) is not fused"
        if self.has_norms and not has_all(module, *QK_NORMS):
            yield "only queries or only keys are normalised"
        if not isinstance(module._modules[self.qkv[0]], nn.Linear):
            yield f"{self.qkv[0]} is not a linear layer"

    def called(self) -> tuple[str, ...]:
        qkv = () if self.has_biases else self.qkv
        norms = QK_NORMS if self.has_norms else ()
        return (*qkv, *norms, self.proj, *self.first, *self.before, *self.after)

    def keeps_own(self) -> bool:
        return self.has_norms or len(self.qkv) > 1

    def may_run(self, module: nn.Module) -> bool:
        if widths(module, self.qkv) != self.widths:
            return False
        if any(is_distributed(module._modules[name]) for name in self.qkv):
            return False
        dropout: Any = module._modules.get(self.dropout or "")
        if dropout is None or dropout.p == 0:
            return True
        # Some packages ask the module and some the dropout whether this is training.
        return dropout.p < 1 and dropout.training == module.training

    def run(self, module: nn.Module, x: Tensor) -> Tensor:
        parts: Any = module._modules
        x, heads = call_parts(module, self.first, x), getattr(module, self.heads)
        is_dropping = module.training and self.dropout is not None
        dropout = parts[self.dropout].p if is_dropping else 0.0
        if self.has_biases:
            x = F.linear(x, parts[self.qkv[0]].weight, packed_bias(module))
        else:
            made = [linear(parts[name], x) for name in self.qkv]
            x = made[0] if len(made) == 1 else torch.cat(made, dim=-1)
        x = norm_qk(module, x, heads) if self.has_norms else x
        x = call_parts(module, self.before, attention(x, heads, dropout=dropout))
        return call_parts(module, self.after, linear(parts[self.proj], x))

    def width(self, module: nn.Module) -> int:
        return module._modules[self.qkv[0]].in_features  # type: ignore[union-attr, return-value]


def widths(module: nn.Module, names: Sequence[str]) -> tuple[int | None, ...]:
    """The columns that layers return, None where a layer does not tell."""
    return tuple([getattr(module._modules[name], "out_features", None) for name in names])


def is_distributed(layer: Any) -> bool:
    """Whether a layer has DTensors, as in tensor parallelism, so that it may return some."""
    return any(hasattr(p, "device_mesh") for p in layer._parameters.values())


def norm_qk(module: nn.Module, qkv: Tensor, heads: int) -> Tensor:
    """Queries, keys and values ``[B, N, 3*D]`` after the norms of queries and keys."""
    # [B, heads, N, d], as most models have them where hooks on the norms see them
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).transpose(1, 3).unbind(2)
    parts: Any = module._modules
    q, k = (parts[name](x).to(v.dtype) for name, x in zip(QK_NORMS, (q, k), strict=True))
    return torch.stack([x.transpose(1, 2) for x in (q, k, v)], dim=2).flatten(2)


def packed_bias(module: nn.Module) -> Tensor:
    """``[3*D]`` from the biases of queries and values, and of keys where there is one."""
    q, k, v = (getattr(module, name, None) for name in BIASES)
    return torch.cat([q, torch.zeros_like(v) if k is None else k, v])  # type: ignore[arg-type, list-item]


class PreNormAttention(PackedAttention):
    """``to_out(attention(to_qkv(norm(x))))``."""

    optional = ("norm", "attend", "dropout")

    @classmethod
    def fitting(cls, module: nn.Module) -> Iterator[Self]:
        if has_all(module, "to_qkv", "to_out") and (heads := heads_name(module)) is not None:
            first, dropout = present(module, ["norm"]), dropout_name(module, "dropout")
            columns = widths(module, ["to_qkv"])
            yield cls(("to_qkv",), columns, "to_out", heads, first, dropout=dropout)


class SeparateAttention(PackedAttention):
    """``proj(attention(q(x), k(x), v(x)))``."""

    kind = SEPARATE_ATTENTION

    @classmethod
    def fitting(cls, module: nn.Module) -> Iterator[Self]:
        after, dropout = present(module, ["proj_drop"]), dropout_name(module, "attn_drop")
        for qkv, proj in itertools.product(SEPARATE, OUT):
            layers = [module._modules.get(name) for name in (*qkv, proj)]
            if not all(isinstance(layer, nn.Linear) for layer in layers):
                continue
            if (heads := heads_name(module)) is not None:
                yield cls(qkv, widths(module, qkv), proj, heads, after=after, dropout=dropout)

    def reasons(self, module: nn.Module) -> Iterator[str]:
        yield from unknown_parts(module, (*self.qkv, self.proj, "proj_drop", "attn_drop"))


class Multihead(Adapter):
    """Batch first, of one width, without returned weights; others keep their own forward pass."""

    kind = "attention"

    @classmethod
    def fitting(cls, module: nn.Module) -> Iterator[Self]:
        if isinstance(module, nn.MultiheadAttention):
            yield cls()

    def reasons(self, module: Any) -> Iterator[str]:
        if not module.batch_first:
            yield "its batch is not the first dimension"
        if not module._qkv_same_embed_dim:
            yield "queries, keys and values differ in width"
        if module.bias_k is not None or module.bias_v is not None or module.add_zero_attn:
            yield "it adds tokens to keys and values"
        yield from unknown_parts(module, ("out_proj",), ("in_proj_weight", "in_proj_bias"))

    def may_run(self, module: Any) -> bool:
        return module.dropout < 1

    def tokens(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], parameters: Mapping[str, Any]
    ) -> Tensor | None:
        given = {**parameters, **dict(zip(parameters, args, strict=False)), **kwargs}
        query, key, value = (given.pop(name, None) for name in QKV)
        weights = given.pop("need_weights", True), given.pop("average_attn_weights", True)
        if not isinstance(query, Tensor) or not (key is query and value is query) or weights[0]:
            return None
        return None if len(args) > len(parameters) or asks(given, parameters) else query

    def trial_arguments(self, x: Tensor) -> tuple[tuple, dict[str, Any]]:
        return (x, x, x), {"need_weights": False}

    def run(self, module: Any, x: Tensor) -> Tensor:
        x = kernels.linear(x, module.in_proj_weight, module.in_proj_bias)
        x = attention(x, module.num_heads, dropout=module.dropout if module.training else 0.0)
        return kernels.linear(x, module.out_proj.weight, module.out_proj.bias)

    def width(self, module: Any) -> int:
        return module.embed_dim
