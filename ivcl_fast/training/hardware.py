"""What the machine can do, asked only when a command runs."""

from __future__ import annotations

import ctypes
import os
import shutil

import torch

from ivcl_fast.errors import UserError
from ivcl_fast.kernels import unsupported_reason

PEAK_TFLOPS = {
    "NVIDIA A100-PCIE-40GB": 312.0,
    "NVIDIA A100-SXM4-40GB": 312.0,
    "NVIDIA A100 80GB PCIe": 312.0,
    "NVIDIA A100-SXM4-80GB": 312.0,
    "NVIDIA L4": 121.0,
    "NVIDIA L40S": 362.0,
    "NVIDIA H100 PCIe": 756.5,
    "NVIDIA H100 NVL": 835.5,
    "NVIDIA H100 80GB HBM3": 989.4,
    "NVIDIA H200": 989.4,
    "NVIDIA GH200 480GB": 989.4,
    "NVIDIA B200": 2250.0,
    "NVIDIA GeForce RTX 3090": 71.0,
    "NVIDIA GeForce RTX 4090": 165.2,
    "NVIDIA GeForce RTX 5090": 209.5,
}
"""Dense bfloat16 products with float32 sums, by whole names: part of a card (MIG) is slower.

From NVIDIA's data sheets (half of what they give for sparse products), GeForce from its
architecture white papers.
"""


def peak_flops(device: torch.device) -> float | None:
    """FLOP/s of bfloat16 products that a card has by its data sheet, or None if not known."""
    if device.type != "cuda":
        return None
    peak = PEAK_TFLOPS.get(torch.cuda.get_device_name(device))
    return peak and peak * 1e12


def pick_device(name: str) -> torch.device:
    """``auto`` is the first CUDA device, or the CPU where there is none.

    Raises ``UserError`` for a name that is no device of this machine.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    have = ["cpu"]
    if torch.cuda.is_available():
        have += ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if name not in have:
        raise UserError(f"--device: {name!r} is not auto or one of {', '.join(have)}")
    return torch.device(name)


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 matrix products run in hardware there."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpu = torch.cpu
    return cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported()


def use_bf16(amp: str, device: torch.device) -> bool:
    """Return whether ``--amp`` (auto, bf16 or off) means bfloat16 autocast on ``device``."""
    return amp == "bf16" or (amp == "auto" and has_fast_bf16(device))


def compile_unsupported_reason(device: torch.device) -> str | None:
    """Why ``torch.compile`` cannot make a step faster there, or None."""
    if device.type != "cpu":
        return unsupported_reason(device)  # what it compiles to there is Triton's to run, too
    if unsupported_reason(device) is None:
        return "on a CPU the C++ ops leave nothing to gain"
    if not any(map(shutil.which, ("g++", "c++", "clang++"))):
        return "no C++ compiler on PATH"
    return None


def enable_determinism() -> None:
    """Have the same computation give the same bits whenever it runs here, though it be slower.

    To be called before the first use of a GPU or of the compiler.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats only with it
    os.environ.setdefault("TORCHINDUCTOR_DETERMINISTIC", "1")  # kernels not chosen by stopwatch
    torch.use_deterministic_algorithms(True)
    # Nothing here reads memory that was never written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def tune_malloc() -> None:
    """Have the C library keep what is freed for the next allocation (glibc; elsewhere nothing).

    By default it hands large blocks back, and every step of a CPU takes them anew as zeroed pages:
    a fifth of the time of a ``tiny`` step.
    """
    trim_threshold, mmap_threshold = -1, -3
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(mmap_threshold, 32 * 2**20)  # the largest that glibc takes
        mallopt(trim_threshold, 2**31 - 1)
