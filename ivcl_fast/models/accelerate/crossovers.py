"""The longest sequence at which fused attention is faster, by hardware, dtype and use.

Measured in November 2026 on the attention of a ViT-B with 17 to 785 tokens, with two threads,
against the faster of SDPA and an explicit softmax. Unmeasured CPUs and dtypes use the rows of
:data:`NEAREST`. GPU thresholds are unmeasured. MLPs and whole blocks gained nothing in float32 on
any CPU, and in bfloat16 less than attention alone, so they are not in the table.
"""

from __future__ import annotations

import torch

from ivcl_fast.kernels import _ext
from ivcl_fast.kernels._op import constant_when_compiled, unsupported_reason

PACKED, SEPARATE = "attention", "separate_attention"
"""Attention on one packed tensor of queries, keys and values, or on three that must be packed."""
LIMITS: dict[tuple[str, str, str], tuple[int, int]] = {
    ("amx", PACKED, "bfloat16"): (400, 257),
    ("amx", PACKED, "float32"): (257, 257),
    # Inference is set to 0 by hand: public models were up to 5 % slower.
    ("amx", SEPARATE, "bfloat16"): (400, 0),
    ("amx", SEPARATE, "float32"): (0, 0),
    ("avx2", PACKED, "float32"): (0, 0),
    ("avx2", SEPARATE, "float32"): (0, 0),
    ("avx512bf16", PACKED, "bfloat16"): (197, 400),
    ("avx512bf16", PACKED, "float32"): (0, 0),
    ("avx512bf16", SEPARATE, "bfloat16"): (197, 400),
    ("avx512bf16", SEPARATE, "float32"): (0, 0),
    ("cuda", PACKED, "bfloat16"): (128, 128),
    ("cuda", SEPARATE, "bfloat16"): (128, 128),
}
"""Longest sequence in training and in inference, by (hardware, kind, dtype)."""
NEAREST = "avx512bf16"
"""Hardware whose rows are used for other CPUs."""


@constant_when_compiled
def longest(kind: str, device: str, dtype: torch.dtype, training: bool) -> int:
    """Return the longest sequence for the fused forward pass; 0 if it is never used."""
    if unsupported_reason(torch.device(device), dtype) is not None:
        return 0
    name = str(torch.bfloat16 if dtype == torch.float16 else dtype).removeprefix("torch.")
    hardware = ("cuda",) if device == "cuda" else (_ext.ISA, NEAREST)
    limits = next((LIMITS[h, kind, name] for h in hardware if (h, kind, name) in LIMITS), (0, 0))
    return limits[0 if training else 1]


def no_gain_reason(kind: str, device: str) -> str | None:
    """Return why no dtype is faster on a device, or None."""
    dtypes = (torch.bfloat16, torch.float16, torch.float32)
    if any(longest(kind, device, dtype, t) for dtype in dtypes for t in (True, False)):
        return None
    return unsupported_reason(torch.device(device), torch.float32) or "no gain was measured"
