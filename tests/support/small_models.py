"""Models small enough for tests: one to compute by hand, with video for it, and one to train."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ivcl_fast import IVCLConfig

SMALL = dict(
    image_size=16, patch_size=4, num_frames=5, num_query_frames=3, embed_dim=16, num_heads=2,
    depth=2, temporal_depth=1, decoder_dim=8, decoder_heads=2, decoder_depth=1, num_slots=2,
)  # fmt: skip

SIZE_FLAGS = (
    "--image-size", "16", "--embed-dim", "16", "--num-heads", "2", "--depth", "1",
    "--temporal-depth", "1", "--decoder-dim", "16", "--decoder-heads", "2", "--decoder-depth", "1",
)  # fmt: skip
"""Flags of ``ivcl_fast.train`` for a model whose step takes milliseconds."""
FRAME_FLAGS = ("--num-frames", "4", "--num-query-frames", "2")
"""Flags for short clips; not for ACRE, whose clips have a length of their own."""
RUN_FLAGS = (
    *SIZE_FLAGS, "--batch-size", "4", "--pretrain-clips", "8", "--finetune-clips", "8",
    "--workers", "1",
)  # fmt: skip
"""Flags of a run with two steps per stage. Flags that follow replace them."""


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
