"""What the machine can do, asked only when a command runs."""

from __future__ import annotations

import shutil

import torch

from .errors import UserError


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


def missing_compiler(device: torch.device) -> str | None:
    """Why ``torch.compile`` cannot work here, or None."""
    if device.type == "cpu" and not any(map(shutil.which, ("g++", "c++", "clang++"))):
        return "no C++ compiler on PATH"
    return None
