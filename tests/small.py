"""A model small enough to be computed by hand, and video for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ivcl_fast import IVCLConfig

SMALL = dict(
    image_size=16, patch_size=4, num_frames=5, num_query_frames=3, embed_dim=16, num_heads=2,
    depth=2, temporal_depth=1, decoder_dim=8, decoder_heads=2, decoder_depth=1, num_slots=2,
)  # fmt: skip


def config(**overrides: Any) -> IVCLConfig:
    """The small sizes, some fields replaced."""
    return IVCLConfig.from_dict(SMALL | overrides)


def random_video(clips: int) -> Tensor:
    """uint8 ``[clips, T, 3, H, W]`` for the small sizes, the same every time."""
    cfg, generator = config(), torch.Generator().manual_seed(0)
    shape = clips, cfg.num_frames, 3, cfg.image_size, cfg.image_size
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


def sharpened(model: Any) -> Any:
    """The model with attention far from even, so that a wrong head or key shows."""
    with torch.no_grad():
        for block in model.encoder.blocks:
            block.attn.qkv.weight.mul_(4)
            block.attn.qkv.bias.normal_()
    return model
