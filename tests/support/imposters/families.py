"""Attention and blocks with the parts and names of public packages, computed in steps.

Every step is a method, so that a mutation can replace one. ``dim`` is the width, ``heads`` the
number of heads, ``hidden`` the width of an MLP, and ``draw`` a random generator of the options that
a package leaves to its user: biases, eps, spelling of the arithmetic.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.imposters.mlps import HuggingFaceMlp, Mlp

EPS = (1e-5, 1e-6, 1e-12)


class Attention(nn.Module):
    """Self-attention in steps; families add parameters, ``project`` and ``out``."""

    returns_weights = False

    def __init__(self, dim: int, heads: int, draw: random.Random) -> None:
        super().__init__()
        self.head_dim = dim // heads
        self.scale = self.head_dim**-0.5
        self.fused = draw.random() < 0.5
        self.build(dim, heads, draw)

    def build(self, dim: int, heads: int, draw: random.Random) -> None:
        raise NotImplementedError

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # [B, H, N, d] each
        raise NotImplementedError

    def split(self, x: Tensor) -> Tensor:  # [B, N, D] -> [B, H, N, d]
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def unpack(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # [B, N, 3 D]
        q, k, v = qkv.unflatten(-1, (3, -1, self.head_dim)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        return (q * self.scale) @ k.transpose(-2, -1)

    def weights(self, scores: Tensor) -> Tensor:
        return scores.softmax(dim=-1)

    def mix(self, weights: Tensor, v: Tensor) -> Tensor:
        return weights @ v

    def attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.fused:
            return F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.mix(self.weights(self.scores(q, k)), v)

    def merge(self, x: Tensor) -> Tensor:  # [B, H, N, d] -> [B, N, D]
        return x.transpose(1, 2).flatten(2)

    def out(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Any:
        x = self.out(self.merge(self.attention(*self.project(x))))
        return (x, None) if self.returns_weights else x


class TimmAttention(Attention):
    def build(self, dim: int, heads: int, draw: random.Random) -> None:
        self.num_heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=draw.random() < 0.7)
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(dim, dim, bias=draw.random() < 0.8)
        self.proj_drop = nn.Dropout(0.0)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.unpack(self.qkv(x))

    def out(self, x: Tensor) -> Tensor:
        return self.proj_drop(self.proj(x))


class NormedAttention(TimmAttention):
    """With a LayerNorm of queries and keys over the head dimension."""

    def build(self, dim: int, heads: int, draw: random.Random) -> None:
        super().build(dim, heads, draw)
        self.q_norm, self.k_norm = (nn.LayerNorm(self.head_dim, eps=1e-6) for _ in "qk")

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().project(x)
        return self.q_norm(q), self.k_norm(k), v


class QVBiasAttention(TimmAttention):
    """With biases of queries and values that are parameters of their own."""

    def build(self, dim: int, heads: int, draw: random.Random) -> None:
        super().build(dim, heads, draw)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias, self.v_bias = (nn.Parameter(torch.zeros(dim)) for _ in "qv")

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        return self.unpack(F.linear(x, self.qkv.weight, bias))


class ClipAttention(Attention):
    """With separate projections, as towers of CLIP and SigLIP in Hugging Face have them."""

    returns_weights = True
    names = ("q_proj", "k_proj", "v_proj", "out_proj")

    def build(self, dim: int, heads: int, draw: random.Random) -> None:
        self.num_heads = self.num_attention_heads = heads
        self.embed_dim = dim
        bias = draw.random() < 0.7
        for name in self.names[:3]:
            setattr(self, name, nn.Linear(dim, dim, bias=bias))
        setattr(self, self.names[3], nn.Linear(dim, dim))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (self.split(getattr(self, name)(x)) for name in self.names[:3])
        return q, k, v

    def out(self, x: Tensor) -> Tensor:
        return getattr(self, self.names[3])(x)


class HuggingFaceAttention(ClipAttention):
    names = ("q_proj", "k_proj", "v_proj", "o_proj")


class VitPytorchAttention(Attention):
    """With its norm inside."""

    def build(self, dim: int, heads: int, draw: random.Random) -> None:
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.attend, self.dropout = nn.Softmax(dim=-1), nn.Dropout(0.0)
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(dim, dim), nn.Dropout(0.0))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.to_qkv(self.norm(x)).chunk(3, dim=-1)
        return self.split(q), self.split(k), self.split(v)

    def out(self, x: Tensor) -> Tensor:
        return self.to_out(x)


class LayerScale(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """timm's pre-norm block in steps: the two norms, the two branches and their sums."""

    norms = ("norm1", "norm2")

    def __init__(self, dim: int, heads: int, hidden: int, draw: random.Random) -> None:
        super().__init__()
        self.build(dim, heads, hidden, draw)

    def build(self, dim: int, heads: int, hidden: int, draw: random.Random) -> None:
        self.norm1, self.norm2 = (nn.LayerNorm(dim, eps=draw.choice(EPS)) for _ in range(2))
        self.attn, self.mlp = TimmAttention(dim, heads, draw), Mlp(dim, hidden, draw)
        self.ls1 = self.ls2 = nn.Identity()
        self.drop_path1 = self.drop_path2 = nn.Identity()

    def first_norm(self, x: Tensor) -> Tensor:
        return getattr(self, self.norms[0])(x)

    def second_norm(self, x: Tensor) -> Tensor:
        return getattr(self, self.norms[1])(x)

    def first(self, x: Tensor) -> Tensor:
        return self.drop_path1(self.ls1(self.attn(x)))

    def second(self, x: Tensor) -> Tensor:
        return self.drop_path2(self.ls2(self.mlp(x)))

    def add(self, x: Tensor, branch: Tensor) -> Tensor:
        return x + branch

    def forward(self, x: Tensor) -> Any:
        x = self.add(x, self.first(self.first_norm(x)))
        return self.add(x, self.second(self.second_norm(x)))


class LayerScaleBlock(Block):
    def build(self, dim: int, heads: int, hidden: int, draw: random.Random) -> None:
        super().build(dim, heads, hidden, draw)
        self.ls1, self.ls2 = LayerScale(dim), LayerScale(dim)


class RmsNormBlock(Block):
    def build(self, dim: int, heads: int, hidden: int, draw: random.Random) -> None:
        super().build(dim, heads, hidden, draw)
        self.norm1, self.norm2 = (nn.RMSNorm(dim, eps=draw.choice(EPS)) for _ in range(2))


class GammaBlock(Block):
    """With the scales of its branches as parameters of its own, as BEiT's."""

    def build(self, dim: int, heads: int, hidden: int, draw: random.Random) -> None:
        super().build(dim, heads, hidden, draw)
        self.attn = QVBiasAttention(dim, heads, draw)
        del self.ls1, self.ls2
        self.gamma_1, self.gamma_2 = (nn.Parameter(torch.ones(dim)) for _ in range(2))

    def first(self, x: Tensor) -> Tensor:
        return self.drop_path1(self.gamma_1 * self.attn(x))

    def second(self, x: Tensor) -> Tensor:
        return self.drop_path2(self.gamma_2 * self.mlp(x))


class HuggingFaceBlock(Block):
    norms = ("layernorm_before", "layernorm_after")

    def build(self, dim: int, heads: int, hidden: int, draw: random.Random) -> None:
        eps = draw.choice(EPS)
        self.attention = HuggingFaceAttention(dim, heads, draw)
        self.layernorm_before = nn.LayerNorm(dim, eps=eps)
        self.layernorm_after = nn.LayerNorm(dim, eps=eps)
        self.mlp = HuggingFaceMlp(dim, hidden, draw)
        self.dropout = nn.Dropout(0.0)

    def first(self, x: Tensor) -> Tensor:
        return self.dropout(self.attention(x)[0])

    def second(self, x: Tensor) -> Tensor:
        return self.dropout(self.mlp(x))


class TorchvisionBlock(Block):
    """Around PyTorch's MultiheadAttention."""

    norms = ("ln_1", "ln_2")

    def build(self, dim: int, heads: int, hidden: int, draw: random.Random) -> None:
        self.num_heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.self_attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.dropout = nn.Dropout(0.0)
        layers = [nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(0.0), nn.Linear(hidden, dim)]
        self.mlp = nn.Sequential(*layers, nn.Dropout(0.0))

    def first(self, x: Tensor) -> Tensor:
        return self.dropout(self.self_attention(x, x, x, need_weights=False)[0])

    def second(self, x: Tensor) -> Tensor:
        return self.mlp(x)


class OpenClipBlock(TorchvisionBlock):
    def build(self, dim: int, heads: int, hidden: int, draw: random.Random) -> None:
        self.ln_1, self.ln_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.ls_1 = self.ls_2 = nn.Identity()
        parts = (nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        self.mlp = nn.Sequential(OrderedDict(zip(("c_fc", "gelu", "c_proj"), parts, strict=True)))

    def first(self, x: Tensor) -> Tensor:
        return self.ls_1(self.attn(x, x, x, need_weights=False)[0])

    def second(self, x: Tensor) -> Tensor:
        return self.ls_2(self.mlp(x))


ATTENTIONS = (
    TimmAttention, NormedAttention, QVBiasAttention, ClipAttention, HuggingFaceAttention,
    VitPytorchAttention,
)  # fmt: skip
BLOCKS = (
    Block, LayerScaleBlock, GammaBlock, RmsNormBlock, HuggingFaceBlock, TorchvisionBlock,
    OpenClipBlock,
)  # fmt: skip
