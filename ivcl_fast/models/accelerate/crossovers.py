"""The longest sequence at which fused attention is faster, by hardware, dtype and use.

Measured on the attention of a ViT-B against the faster of SDPA and an explicit softmax
(``benchmarks/results/crossovers-*.json``). CPUs and dtypes that were not measured use the rows of
:data:`NEAREST`. GPU thresholds are unmeasured. MLPs and whole blocks gained nothing in float32 on
any CPU, and in bfloat16 less than attention alone, so they are not in the table.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ivcl_fast.kernels import _ext
from ivcl_fast.kernels._op import constant_when_compiled, unsupported_reason
from ivcl_fast.models.layers import compute_dtype

PACKED, SEPARATE = "attention", "separate_attention"
"""Attention on one tensor of queries, keys and values, or on three, which have to be packed."""
LIMITS: dict[tuple[str, str, str], tuple[int, int]] = {
    ("amx", PACKED, "bfloat16"): (400, 257),
    ("amx", PACKED, "float32"): (257, 257),
    # Inference was set to 0 by hand: public models lost up to 5 % with it.
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
LEAST = {"cpu": 1 << 16, "cuda": 1 << 22}
"""Size of the input ``B*N*D`` below which a call costs more than it gains.

On a CPU these are the checks of a call, except in bfloat16 training, which gains at every size. On
a GPU it is the launch of kernels; that number is an estimate.
"""
NEAREST = "avx512bf16"
"""The hardware whose rows other CPUs use."""


@constant_when_compiled
def longest(kind: str, device: str, dtype: torch.dtype, training: bool) -> int:
    """The longest sequence for which the fused forward pass is used; 0 where it never is."""
    if unsupported_reason(torch.device(device), dtype) is not None:
        return 0
    name = str(torch.bfloat16 if dtype == torch.float16 else dtype).removeprefix("torch.")
    hardware = ("cuda",) if device == "cuda" else (_ext.ISA, NEAREST)
    limits = next((LIMITS[h, kind, name] for h in hardware if (h, kind, name) in LIMITS), (0, 0))
    return limits[0 if training else 1]


def is_small(x: Tensor, training: bool) -> bool:
    """Whether an input is too small for a fused forward pass to gain anything."""
    if x.numel() >= LEAST.get(x.device.type, 0):
        return False
    return x.is_cuda or not (training and compute_dtype(x) == torch.bfloat16)


def no_gain_reason(kind: str, device: str) -> str | None:
    """Why no dtype gains anything on a device, or None."""
    dtypes = (torch.bfloat16, torch.float16, torch.float32)
    if any(longest(kind, device, dtype, t) for dtype in dtypes for t in (True, False)):
        return None
    return unsupported_reason(torch.device(device), torch.float32) or "no gain was measured"
