"""Up to which length a fused forward pass is the faster one, by hardware, dtype and use.

Measured by ``python -m benchmarks.zoo.crossovers``, which writes the table below from its results.
What its results put at 17 to 128 tokens on AMX was lowered to 0 by hand for MLPs and, in inference,
for separate attention: public models lost up to 5 % in inference where these were fused.
CPUs and dtypes that were not measured, such as bfloat16 on AVX2, use the rows of :data:`NEAREST`.
Only on AMX and AVX2 was separate attention measured by itself; elsewhere it has attention's rows,
which public models confirm on avx512bf16.
The rows of ``mlp`` are measured with the exact GELU. They also hold for the other kinds and for
gated MLPs, whose fused pass takes about the same time where PyTorch's own operations take longer.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ivcl_fast.kernels import _ext
from ivcl_fast.kernels._op import constant_when_compiled, unsupported_reason
from ivcl_fast.models.layers import compute_dtype

ANY = 1 << 30
SEPARATE_ATTENTION = "separate_attention"
"""Attention whose queries, keys and values are separate tensors, which have to be packed first."""
LIMITS: dict[tuple[str, str, str], tuple[int, int]] = {
    ("amx", "attention", "bfloat16"): (400, 257),
    ("amx", "attention", "float32"): (257, 257),
    ("amx", "block", "bfloat16"): (17, 0),
    ("amx", "block", "float32"): (0, 0),
    ("amx", "mlp", "bfloat16"): (0, 0),
    ("amx", "mlp", "float32"): (0, 0),
    ("amx", "rms_block", "bfloat16"): (ANY, 197),
    ("amx", "rms_block", "float32"): (50, 0),
    ("amx", "separate_attention", "bfloat16"): (400, 0),
    ("amx", "separate_attention", "float32"): (0, 0),
    ("avx2", "attention", "float32"): (0, 0),
    ("avx2", "block", "float32"): (0, 0),
    ("avx2", "mlp", "float32"): (0, 0),
    ("avx2", "rms_block", "float32"): (0, 0),
    ("avx2", "separate_attention", "float32"): (0, 0),
    ("avx512bf16", "attention", "bfloat16"): (197, 400),
    ("avx512bf16", "attention", "float32"): (0, 0),
    ("avx512bf16", "block", "bfloat16"): (0, 128),
    ("avx512bf16", "block", "float32"): (0, 0),
    ("avx512bf16", "mlp", "bfloat16"): (0, 0),
    ("avx512bf16", "mlp", "float32"): (0, 0),
    ("avx512bf16", "rms_block", "bfloat16"): (257, 0),
    ("avx512bf16", "rms_block", "float32"): (0, 0),
    ("avx512bf16", "separate_attention", "bfloat16"): (197, 400),
    ("avx512bf16", "separate_attention", "float32"): (0, 0),
    ("cuda", "attention", "bfloat16"): (128, 128),
    ("cuda", "block", "bfloat16"): (ANY, ANY),
    ("cuda", "mlp", "bfloat16"): (ANY, ANY),
    ("cuda", "rms_block", "bfloat16"): (ANY, ANY),
    ("cuda", "separate_attention", "bfloat16"): (128, 128),
}
"""Longest sequence in training and in inference, by (hardware, kind, dtype)."""
LEAST = {"cpu": 1 << 16, "cuda": 1 << 22}
"""Values of the tokens, ``B*N*D``, below which a call costs more than is gained.

On a CPU these are its checks, but for bfloat16 training: there packed attention was 1.08 to 2.4
times as fast as before from 3,264 values on. In inference and in float32 it was at most 1.02 times
as fast below 53,000, and no slower from 75,000 on (Intel with AMX, one thread, medians of 50 and
180 rounds in turn). On a GPU it is the host, which takes two to three times as long to start the
fused ops of a block as PyTorch's; that a GPU computes longer than that from here on is an estimate.
"""
NEAREST = "avx512bf16"
"""The hardware whose rows other CPUs use; AMX has matrix units, which those lack."""


def hardware(device: str) -> str:
    """The table's name of a device: ``cuda``, or on a CPU the instruction set that is used."""
    return "cuda" if device == "cuda" else _ext.ISA or NEAREST


@constant_when_compiled
def longest(kind: str, device: str, dtype: torch.dtype, training: bool) -> int:
    """The longest sequence for which the fused forward pass is used; 0 where it never is."""
    if unsupported_reason(torch.device(device), dtype) is not None:
        return 0
    name = str(torch.bfloat16 if dtype == torch.float16 else dtype).removeprefix("torch.")
    places = (hardware(device), "cuda" if device == "cuda" else NEAREST)
    limits = next((LIMITS[p, kind, name] for p in places if (p, kind, name) in LIMITS), (0, 0))
    return limits[0 if training else 1]


def is_small(x: Tensor, training: bool) -> bool:
    """Whether tokens are too few for a fused forward pass to gain anything."""
    if x.numel() >= LEAST.get(x.device.type, 0):
        return False
    return x.is_cuda or not (training and compute_dtype(x) == torch.bfloat16)


def no_gain_reason(kind: str, device: str) -> str | None:
    """Why no dtype gains anything on a device, or None."""
    dtypes = (torch.bfloat16, torch.float16, torch.float32)
    if any(
        longest(kind, device, dtype, training) for dtype in dtypes for training in (True, False)
    ):
        return None
    reason = unsupported_reason(torch.device(device), torch.float32)
    return f"nothing is gained on this device: {reason or 'it was measured to be no faster'}"
