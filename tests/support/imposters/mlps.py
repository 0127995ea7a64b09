"""MLPs with the parts and names of public packages, computed in steps, as in ``families.py``."""

from __future__ import annotations

import random

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Mlp(nn.Module):
    """timm's MLP in steps. ``gelu`` is the kind of its activation."""

    gelu = "none"

    def __init__(self, dim: int, hidden: int, draw: random.Random) -> None:
        super().__init__()
        self.build(dim, hidden, draw)

    def build(self, dim: int, hidden: int, draw: random.Random) -> None:
        self.fc1, self.act = nn.Linear(dim, hidden), nn.GELU()
        self.drop1, self.norm = nn.Dropout(0.0), nn.Identity()
        self.fc2 = nn.Linear(hidden, dim, bias=draw.random() < 0.8)
        self.drop2 = nn.Dropout(0.0)

    def expand(self, x: Tensor) -> Tensor:
        return self.fc1(x)

    def activate(self, x: Tensor) -> Tensor:
        return self.norm(self.drop1(self.act(x)))

    def out(self, x: Tensor) -> Tensor:
        return self.drop2(self.fc2(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.activate(self.expand(x)))


class HuggingFaceMlp(Mlp):
    def build(self, dim: int, hidden: int, draw: random.Random) -> None:
        self.activation_fn = nn.GELU()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def activate(self, x: Tensor) -> Tensor:
        return self.activation_fn(x)

    def out(self, x: Tensor) -> Tensor:
        return self.fc2(x)


class TanhMlp(Mlp):
    gelu = "tanh"

    def build(self, dim: int, hidden: int, draw: random.Random) -> None:
        super().build(dim, hidden, draw)
        self.act = nn.GELU(approximate="tanh")


class QuickGelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class ClipMlp(HuggingFaceMlp):
    gelu = "quick"

    def build(self, dim: int, hidden: int, draw: random.Random) -> None:
        super().build(dim, hidden, draw)
        self.activation_fn = QuickGelu()


class SwiGlu(nn.Module):
    """timm's SwiGLU in steps, with or without its norm."""

    def __init__(self, dim: int, hidden: int, draw: random.Random) -> None:
        super().__init__()
        self.build(dim, hidden, draw)

    def build(self, dim: int, hidden: int, draw: random.Random) -> None:
        self.fc1_g, self.fc1_x = nn.Linear(dim, hidden), nn.Linear(dim, hidden)
        self.act, self.drop1 = nn.SiLU(), nn.Dropout(0.0)
        self.norm = nn.LayerNorm(hidden) if draw.random() < 0.5 else nn.Identity()
        self.fc2 = nn.Linear(hidden, dim, bias=draw.random() < 0.8)

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]:  # gates and values
        return self.fc1_g(x), self.fc1_x(x)

    def biases(self) -> tuple[Tensor, Tensor]:
        return self.fc1_g.bias, self.fc1_x.bias

    def activate(self, gate: Tensor) -> Tensor:
        return self.act(gate)

    def combine(self, gate: Tensor, value: Tensor) -> Tensor:
        return self.activate(gate) * value

    def out(self, x: Tensor) -> Tensor:
        return self.fc2(self.norm(self.drop1(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.combine(*self.halves(x)))


class PackedSwiGlu(SwiGlu):
    """timm's SwiGLUPacked: gates are the first half of what one layer makes."""

    first = "fc1"

    def build(self, dim: int, hidden: int, draw: random.Random) -> None:
        super().build(dim, hidden, draw)
        del self.fc1_g, self.fc1_x
        self.fc1 = nn.Linear(dim, 2 * hidden)

    def halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gate, value = getattr(self, self.first)(x).chunk(2, dim=-1)
        return gate, value

    def biases(self) -> tuple[Tensor, Tensor]:
        gate, value = getattr(self, self.first).bias.chunk(2)
        return gate, value


class Dinov2SwiGlu(PackedSwiGlu):
    """Hugging Face's, whose activation is a function."""

    first = "weights_in"

    def build(self, dim: int, hidden: int, draw: random.Random) -> None:
        self.weights_in, self.weights_out = nn.Linear(dim, 2 * hidden), nn.Linear(hidden, dim)

    def activate(self, gate: Tensor) -> Tensor:
        return F.silu(gate)

    def out(self, x: Tensor) -> Tensor:
        return self.weights_out(x)


MLPS = (Mlp, HuggingFaceMlp, TanhMlp, ClipMlp)
GATED_MLPS = (SwiGlu, PackedSwiGlu, Dinov2SwiGlu)
