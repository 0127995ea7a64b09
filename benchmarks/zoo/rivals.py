"""The one-line changes that make attention an explicit softmax, which is faster on many CPUs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

Rival = Callable[[nn.Module], nn.Module]
"""Takes a copy of a model and returns what computes the same."""


def without_fused_attn(model: nn.Module) -> nn.Module:
    """timm: what ``timm.layers.set_fused_attn(False)`` does before a model is built."""
    for part in model.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = False
    return model


def eager(model: Any) -> nn.Module:
    """Hugging Face: ``attn_implementation="eager"``."""
    model.set_attn_implementation("eager")
    return model


def in_math(model: nn.Module) -> nn.Module:
    """PyTorch: ``sdpa_kernel(SDPBackend.MATH)`` around the forward pass."""
    model.forward = sdpa_kernel(SDPBackend.MATH)(model.forward)
    return model
