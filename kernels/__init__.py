"""Fused kernels, one file per op; registered under ``torch.ops.ivcl_fast``.

Import as ``ivcl_fast.kernels``, never as a top-level ``kernels``.
"""

from __future__ import annotations

from ._op import dispatches
from .bias_gelu import bias_gelu

__all__ = ["bias_gelu", "dispatches"]
