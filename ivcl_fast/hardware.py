"""What the machine can do, asked only when a command runs."""

from __future__ import annotations

import shutil

import torch


def pick_device(name: str) -> torch.device:
    """``auto`` is the first CUDA device, or the CPU where there is none."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 matrix products run in hardware there."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpu = torch.cpu
    return cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported()


def missing_compiler(device: torch.device) -> str | None:
    """Why ``torch.compile`` cannot work here, or None."""
    if device.type == "cpu" and not any(map(shutil.which, ("g++", "c++", "clang++"))):
        return "no C++ compiler on PATH"
    return None
