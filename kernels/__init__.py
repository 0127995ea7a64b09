"""Fused kernels, one file per op; registered under ``torch.ops.ivcl_fast``.

Import as ``ivcl_fast.kernels``, never as a top-level ``kernels``.
"""

from __future__ import annotations

from ._op import dispatches, fused
from .add_layer_norm import add_layer_norm, layer_norm
from .bias_gelu import bias_gelu
from .embed_patches import embed_patches
from .linear import linear
from .patch_loss import patch_loss
from .restore_tokens import restore_tokens
from .sample_masks import sample_masks, stream
from .short_attention import short_attention

__all__ = [
    "add_layer_norm",
    "bias_gelu",
    "dispatches",
    "embed_patches",
    "fused",
    "layer_norm",
    "linear",
    "patch_loss",
    "restore_tokens",
    "sample_masks",
    "short_attention",
    "stream",
]
