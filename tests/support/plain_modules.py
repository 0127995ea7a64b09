"""Attention, MLP and block as users write them, their accelerated copies, and what these run."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ivcl_fast import accelerate
from ivcl_fast.kernels import dispatches

WIDTH, HEADS = 32, 4


class Attention(nn.Module):
    """Packed attention with its softmax written out."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_heads = HEADS
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.attn_drop = nn.Dropout(dropout)

    def attend(self, x, causal=False):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        scores = q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)
        if causal:
            n = x.shape[1]
            scores = scores.masked_fill(torch.ones(n, n).triu(1) > 0, -1e9)
        return (self.attn_drop(scores.softmax(-1)) @ v).transpose(1, 2).flatten(2)

    def forward(self, x):
        return self.proj(self.attend(x))


class Sdpa(Attention):
    """The same by PyTorch's attention, with norms of queries and keys."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__(dropout)
        self.q_norm, self.k_norm = nn.LayerNorm(WIDTH // HEADS), nn.LayerNorm(WIDTH // HEADS)

    def attend(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        p = self.attn_drop.p if self.training else 0.0
        y = F.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v, dropout_p=p)
        return y.transpose(1, 2).flatten(2)


class Mlp(nn.Module):
    def __init__(self, act: nn.Module | None = None) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH)
        self.act = act or nn.GELU()

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, mlp: nn.Module | None = None) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(WIDTH), Attention()
        self.norm2, self.mlp = nn.LayerNorm(WIDTH), mlp or Mlp()

    def forward(self, x, residual=True):
        y = self.attn(self.norm1(x))
        x = x + y if residual else y
        return x + self.mlp(self.norm2(x))


def tokens(n: int = 17) -> torch.Tensor:
    return torch.randn(2, n, WIDTH, generator=torch.Generator().manual_seed(5))


def pair(plain: nn.Module, *, replaced: bool = True) -> nn.Module:
    """An accelerated copy; ``replaced``: whether the module itself has to be."""
    fast = copy.deepcopy(plain)
    assert ("" in accelerate(fast).replaced) is replaced
    return fast


def fused_calls(fast: nn.Module, *args: Any, **kwargs: Any) -> int:
    """Fused forward passes of attention in a call."""
    before = dispatches()
    fast(*args, **kwargs)
    return sum(n for (op, _), n in (dispatches() - before).items() if op == "short_attention")


def assert_equal(plain: nn.Module, fast: nn.Module, *args: Any, **kwargs: Any) -> None:
    torch.testing.assert_close(fast(*args, **kwargs), plain(*args, **kwargs))
