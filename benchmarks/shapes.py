"""The shapes that are benchmarked, and what they cost at least."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.race import DEVICE
from ivcl_fast import IVCLConfig, kernels

CLIPS = 32 if DEVICE.type == "cuda" else 8
PRESET = "base64" if DEVICE.type == "cuda" else "tiny"
BF16 = 2  # bytes


@dataclass(frozen=True)
class AttentionShape:
    """Sequences of one length."""

    frames: int
    tokens: int
    heads: int
    head_dim: int
    slow: bool = False

    def __str__(self) -> str:
        return f"{self.frames}x{self.tokens} tokens, {self.heads} heads of {self.head_dim}"

    @property
    def flops(self) -> int:
        """Forward and backward: two products and five."""
        return 7 * 2 * self.frames * self.heads * self.tokens**2 * self.head_dim

    @property
    def bytes(self) -> int:
        """qkv twice and dqkv, the output and its gradient, each once."""
        return BF16 * (3 * 3 + 2) * self.frames * self.tokens * self.heads * self.head_dim


SCALE = 16 if DEVICE.type == "cuda" else 1
ATTENTION = [
    AttentionShape(128 * SCALE, 12, 12, 64),
    AttentionShape(77 * SCALE, 20, 12, 64),
    AttentionShape(35 * SCALE, 44, 12, 64),
    AttentionShape(128 * SCALE, 18, 4, 32),  # tiny: encoder, decoder, temporal transformer
    AttentionShape(64 * SCALE, 66, 3, 32),
    AttentionShape(8 * SCALE, 160, 4, 32, slow=DEVICE.type == "cuda"),
    AttentionShape(24 * SCALE, 64, 12, 64, slow=True),
    AttentionShape(12 * SCALE, 128, 12, 64, slow=True),
]


def draw(*shape: int, dtype: torch.dtype = torch.bfloat16, grad: bool = True) -> Tensor:
    return torch.randn(*shape, dtype=dtype, device=DEVICE, requires_grad=grad)


def draw_rows(cfg: IVCLConfig, frames: int) -> Tensor:
    """uint8 ``[frames, N, 3*P*P]``."""
    shape = frames, cfg.num_patches, cfg.patch_dim
    return torch.randint(256, shape, dtype=torch.uint8, device=DEVICE)


def draw_ids(cfg: IVCLConfig, frames: int) -> tuple[Tensor, Tensor]:
    """Visible and hidden patches of every frame."""
    seeds = torch.arange(frames, device=DEVICE)
    return kernels.sample_masks(seeds, cfg.num_patches, cfg.num_keep)
